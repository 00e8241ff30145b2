"use strict";

// A connection to a node over the JSON protocol (docs/protocol.md): it logs in, comes back by itself, there or at another node,
// repeats what has no answer, and acknowledges pushes. What it hears it hands to `on`.

function uuid() {
  // randomUUID is there in secure contexts only.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

class Refused extends Error {
  constructor(body) {
    super(body.message);
    this.code = body.code;
    this.outcome = body.outcome;
    this.retryAfter = body.retry_after_ms;
  }
}

class Connection {
  constructor(url, token, device, on) {
    Object.assign(this, { url, token, device, on });
    // Where it is tried, one after the other: where the page came from, and the nodes that the servers tell of.
    this.urls = [url];
    this.turn = 0;
    this.asked = new Map();
    this.nextId = 1;
    this.live = false;
    this.over = false;
    this.wait = 250;
    this.open();
  }

  open() {
    this.pushes = 0;
    this.pushesAcked = 0;
    this.socket = new WebSocket(this.urls[this.turn % this.urls.length], "convoke.json");
    this.socket.onopen = () => this.logIn();
    this.socket.onmessage = (event) => this.take(JSON.parse(event.data));
    this.socket.onclose = () => this.lost();
  }

  async logIn() {
    try {
      const os = navigator.platform || "web";
      const welcome = await this.post("hello", { protocol: 1, app: "convoke web", version: "1", os });
      this.limits = welcome.limits;
      this.learn(welcome.nodes);
      const login = { token: this.token, device: this.device, device_class: "web" };
      const me = await this.post("login", login);
      this.live = true;
      this.wait = 250;
      clearInterval(this.timer);
      this.timer = setInterval(() => this.beat(welcome.heartbeat_ms), 1000);
      await this.on.live(me);
      // What had no answer when the connection broke is asked again, as the same attempt's successor.
      for (const ask of this.asked.values()) if (ask.retry && !ask.sent) this.write(ask);
    } catch (error) {
      if (error instanceof Refused) this.end(error.message);
    }
  }

  // The nodes there are now. Where it is stays where it is.
  learn(nodes) {
    const scheme = this.url.split("://")[0];
    const others = nodes.filter((node) => node.ws).map((node) => `${scheme}://${node.ws}/ws`);
    this.urls = [...new Set([this.socket.url, ...others, this.url])];
    this.turn = 0;
  }

  beat(every) {
    const now = performance.now();
    if (this.pushes > this.pushesAcked) this.acknowledge();
    else if (now - this.wrote > every / 2) this.post("heartbeat", {}).catch(() => {});
  }

  acknowledge() {
    this.pushesAcked = this.pushes;
    this.post("ack", { pushes: this.pushes, cursors: [] }).catch(() => {});
  }

  // A request whose answer is lost with the connection.
  post(type, body) {
    return new Promise((resolve, reject) => this.write({ type, body, resolve, reject }));
  }

  // A request that is repeated until it is answered: the server knows it again by its client id.
  ask(type, body) {
    const retry = { client_id: uuid(), attempt: 0, age_ms: 0 };
    return new Promise((resolve, reject) => {
      this.write({ type, body, retry, since: performance.now(), resolve, reject });
    });
  }

  write(ask) {
    ask.id = ask.id || this.nextId++;
    this.asked.set(ask.id, ask);
    if (this.socket.readyState !== WebSocket.OPEN || (ask.retry && !this.live)) return;
    ask.sent = true;
    let body = ask.body;
    if (ask.retry) {
      ask.retry.attempt += 1;
      ask.retry.age_ms = ask.retry.attempt > 1 ? Math.round(performance.now() - ask.since) : 0;
      body = { retry: ask.retry, ...body };
    }
    this.wrote = performance.now();
    this.socket.send(JSON.stringify({ id: ask.id, type: ask.type, body }));
  }

  take(frame) {
    if (!frame.id) return this.event(frame);
    const ask = this.asked.get(frame.id);
    if (!ask) return;
    if (frame.type !== "error") {
      this.asked.delete(frame.id);
      return ask.resolve(frame.body);
    }
    const refused = new Refused(frame.body);
    if (ask.retry && (refused.outcome === "unknown" || refused.retryAfter)) {
      ask.sent = false;
      setTimeout(() => this.live && !ask.sent && this.write(ask), refused.retryAfter || 500);
      return;
    }
    this.asked.delete(frame.id);
    ask.reject(refused);
  }

  event({ type, body }) {
    if (type === "push") {
      this.pushes += 1;
      if (this.pushes - this.pushesAcked >= 64) this.acknowledge();
    }
    if (type === "kicked") return this.end(body.message);
    if (type === "nodes_changed") this.learn(body.nodes);
    if (type === "go_away") {
      this.wait = Math.max(250, body.retry_after_ms);
      this.learn(body.nodes);
    }
    this.on.event(type, body);
  }

  lost() {
    this.live = false;
    clearInterval(this.timer);
    for (const [id, ask] of this.asked) {
      ask.sent = false;
      if (ask.retry) continue;
      this.asked.delete(id);
      ask.reject(new Error("the connection is gone"));
    }
    if (this.over) return;
    this.turn += 1;
    this.on.away(this.wait);
    setTimeout(() => !this.over && this.open(), this.wait * (0.5 + Math.random()));
    this.wait = Math.min(this.wait * 2, 10000);
  }

  // For good.
  end(why) {
    this.over = true;
    this.socket.close();
    this.on.ended(why);
  }
}
