"use strict";

// The page: what is known of conversations, and how it is shown. Texts of users are only ever set as text.

const $ = (id) => document.getElementById(id);
const known = new Map(); // conversation id → { id, group, messages: Map by seq, first, head, unread, reads, typing }
let connection = null;
let me = null;
let shown = null;
let editing = null;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function button(text, title, act) {
  const element = make("button", "", text);
  element.type = "button";
  element.title = title;
  element.onclick = act;
  return element;
}

let noticeTimer = 0;
function notice(text) {
  $("notice").textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => ($("notice").textContent = ""), 6000);
}
const complain = (error) => notice(error.message);

// ---- conversations

function directId(user) {
  const encode = (text) => new TextEncoder().encode(text);
  const [one, other] = [encode(me), encode(user)];
  let at = 0;
  while (at < one.length && at < other.length && one[at] === other[at]) at += 1;
  const first = at === one.length || (at < other.length && one[at] < other[at]);
  return first ? `d:${me}:${user}` : `d:${user}:${me}`;
}

function conversation(id) {
  if (!known.has(id)) {
    known.set(id, { id, messages: new Map(), changes: new Map(), first: 1, head: 0, unread: 0, reads: new Map(), typing: new Map(), sending: [] });
  }
  return known.get(id);
}

function peer(id) {
  const [, one, other] = id.split(":");
  return one === me ? other : one;
}

const isGroup = (id) => id.startsWith("g:");
const target = (id) => (isGroup(id) ? { group: id.slice(2) } : { user: peer(id) });
const title = (one) => one.label || (isGroup(one.id) ? one.name || one.id.slice(2) : peer(one.id));

function text(message) {
  if (message.target) return message.kind.replaceAll("_", " ");
  if (message.recalled_at) return "recalled";
  if (message.deleted_at) return "deleted";
  const { content_type: type, text: body, data } = message.content;
  if (body !== undefined) return body;
  return `[${type}, ${Math.floor(((data || "").length * 3) / 4)} bytes]`;
}

// Takes a message or an entry that changes one, pushed or read, in any order and any number of times.
function put(one, message) {
  one.head = Math.max(one.head, message.seq);
  if (message.target) {
    if (!one.changes.has(message.target)) one.changes.set(message.target, new Map());
    const entries = one.changes.get(message.target);
    // One that is outdated by now is read without what it said: what was known of it stays.
    if (!entries.has(message.seq) || message.content.text) entries.set(message.seq, message);
  }
  const before = one.messages.get(message.seq);
  const older = before && ((before.edited_at || 0) > (message.edited_at || 0) || (isGone(before) && !isGone(message)));
  if (!older) one.messages.set(message.seq, message);
}

const isGone = (message) => message.recalled_at || message.deleted_at;

// A message with all that later entries did to it: what is pushed of a change may come before it is in the message itself.
function current(one, message) {
  const entries = one.changes.get(message.seq);
  if (!entries) return message;
  const now = { ...message, reactions: [...message.reactions] };
  for (const seq of [...entries.keys()].sort((a, b) => a - b)) apply(now, entries.get(seq));
  return now;
}

function apply(message, entry) {
  if (entry.kind === "recall") message.recalled_at = entry.time;
  if (entry.kind === "delete") message.deleted_at = entry.time;
  if (entry.kind === "edit" && entry.content.text && (message.edited_at || 0) <= entry.time) {
    message.content = entry.content;
    message.edited_at = entry.time;
  }
  if (entry.kind === "reaction" && (entry.content.text || entry.content.data)) {
    const bytes = () => Uint8Array.from(atob(entry.content.data), (char) => char.charCodeAt(0));
    const { kind, count } = JSON.parse(entry.content.text || new TextDecoder().decode(bytes()));
    message.reactions = message.reactions.filter((one) => one.kind !== kind);
    if (count) message.reactions.push({ kind, count });
  }
}

async function pull(one, from, to) {
  while (from <= to) {
    const { pages } = await connection.post("pull", { ranges: [{ conversation: one.id, from, to }] });
    const page = pages[0];
    if (page.error) return;
    for (const message of page.messages) put(one, message);
    if (!page.next || page.next <= from) break;
    from = page.next;
  }
  show();
}

async function list() {
  const seen = new Set();
  let after;
  do {
    const page = await connection.post("conversations", { limit: 100, after });
    for (const listed of page.conversations) {
      const one = conversation(listed.conversation);
      seen.add(one.id);
      Object.assign(one, { label: listed.label, head: Math.max(one.head, listed.head), unread: listed.unread, last: listed.last });
      one.name = listed.group && listed.group.name;
      one.listed = true;
      one.ended = listed.group && listed.group.ended;
      if (!one.messages.size) one.first = listed.first;
    }
    after = page.next;
  } while (after);
  showList();
}

async function openConversation(id) {
  shown = conversation(id);
  editing = null;
  show();
  showList();
  $("text").focus();
  try {
    if (!shown.messages.size) await older(shown);
    if (isGroup(id)) await members(shown);
    else await marks(shown);
  } catch (error) {
    if (error.code) complain(error);
  }
  read();
}

async function older(one) {
  const seqs = [...one.messages.keys()];
  const lowest = seqs.length ? Math.min(...seqs) : 0;
  const from = lowest ? { seq: lowest - 1 } : "last";
  if (lowest === 1) return;
  try {
    const { page } = await connection.post("history", { conversation: one.id, from, direction: "older", limit: 50 });
    for (const message of page.messages) put(one, message);
    one.first = page.first;
    one.head = Math.max(one.head, page.head);
  } catch (error) {
    // A conversation that nobody has said anything in yet is not there.
    if (lowest || isGroup(one.id)) throw error;
  }
  show();
}

async function members(one) {
  const page = await connection.post("group_members", { group: one.id.slice(2), limit: 200 });
  one.members = page.members;
  one.total = page.total;
  await marks(one);
  show();
}

async function marks(one) {
  const page = await connection.post("read_marks", { conversation: one.id, limit: 100 }).catch(() => ({ marks: [] }));
  for (const mark of page.marks) one.reads.set(mark.user, mark.seq);
  show();
}

function read() {
  if (!shown || document.hidden || !connection.live || !shown.unread || !shown.head) return;
  const one = shown;
  connection.ask("read", { conversation: one.id, seq: one.head }).then(() => {
    one.unread = 0;
    showList();
  }, () => {});
}

// ---- what is shown

function showList() {
  const all = [...known.values()].filter((one) => one.listed || one === shown || one.messages.size);
  const time = (one) => (lastOf(one) || { time: 0 }).time;
  all.sort((one, other) => time(other) - time(one));
  $("conversations").replaceChildren(...all.map((one) => {
    const item = make("li", one === shown ? "open" : "");
    item.dataset.id = one.id;
    if (one.unread) item.append(make("span", "unread", one.unread));
    item.append(make("div", "", title(one)));
    const last = lastOf(one);
    item.append(make("div", "last", last ? `${last.sender}: ${text(last)}` : ""));
    item.onclick = () => openConversation(one.id);
    return item;
  }));
}

function lastOf(one) {
  const seqs = [...one.messages.keys()];
  const mine = seqs.length ? current(one, one.messages.get(Math.max(...seqs))) : null;
  return mine && (!one.last || mine.seq >= one.last.seq) ? mine : one.last;
}

function show() {
  if (!shown) return;
  const one = shown;
  $("title").textContent = title(one);
  $("members").textContent = one.members ? `${one.total} members: ${one.members.map((m) => m.user).join(", ")}` : "";
  $("add").hidden = !isGroup(one.id);
  $("say").hidden = Boolean(one.ended);
  $("doing").hidden = !editing;
  if (editing) $("doing").firstElementChild.textContent = `editing: ${text(editing)}`;
  const seqs = [...one.messages.keys()].sort((a, b) => a - b);
  $("older").hidden = !seqs.length || seqs[0] <= one.first;
  const bottom = $("history").scrollHeight - $("history").scrollTop - $("history").clientHeight < 60;
  const items = seqs.map((seq) => item(one, current(one, one.messages.get(seq)))).filter(Boolean);
  for (const sending of one.sending) items.push(sendingItem(sending));
  $("messages").replaceChildren(...items);
  if (bottom) $("history").scrollTop = $("history").scrollHeight;
  const typing = [...one.typing.keys()];
  $("typing").textContent = typing.length ? `${typing.join(", ")} ${typing.length > 1 ? "are" : "is"} typing…` : "";
}

const clock = (time) => new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

function item(one, message) {
  // Entries that change other messages are seen in those.
  if (message.target) return null;
  if (message.kind !== "user") {
    return make("li", "note", `${message.sender}: ${message.kind.replaceAll("_", " ")}`);
  }
  const mine = message.sender === me;
  const gone = isGone(message);
  const element = make("li", `${mine ? "mine" : ""} ${gone ? "gone" : ""}`);
  element.dataset.seq = message.seq;
  if (!mine && isGroup(one.id)) element.append(make("div", "sender", message.sender));
  element.append(make("div", "bubble", text(message)));
  const line = make("div", "");
  for (const { kind, count } of message.reactions) {
    const reaction = button(`${kind} ${count}`, "Take your reaction back", () => react(one, message, kind, false));
    reaction.className = "reaction";
    line.append(reaction);
  }
  line.append(make("span", "time", ` ${clock(message.time)}${message.edited_at ? " · edited" : ""} `));
  if (mine && !gone) {
    const readers = [...one.reads].filter(([user, seq]) => user !== me && seq >= message.seq).length;
    const state = !readers ? "✓" : isGroup(one.id) ? `✓✓ ${readers}` : "✓✓";
    line.append(make("span", "state", state));
  }
  if (!gone) line.append(acts(one, message, mine));
  element.append(line);
  return element;
}

function acts(one, message, mine) {
  const all = make("span", "acts");
  for (const kind of ["👍", "❤️", "😄"]) {
    all.append(button(kind, "React", () => react(one, message, kind, true)));
  }
  if (mine) {
    const change = button("✎", "Edit", () => {
      editing = message;
      $("text").value = text(message);
      $("text").focus();
      show();
    });
    const back = button("↶", "Recall", () => {
      connection.ask("recall", { conversation: one.id, seq: message.seq }).then(() => pull(one, message.seq, message.seq)).catch(complain);
    });
    change.classList.add("edit");
    back.classList.add("recall");
    all.append(change, back);
  }
  return all;
}

function react(one, message, kind, give) {
  connection.ask("react", { conversation: one.id, seq: message.seq, kind, give })
    .then(() => pull(one, message.seq, message.seq)).catch(complain);
}

function sendingItem(sending) {
  const element = make("li", "mine");
  element.append(make("div", "bubble", sending.text));
  element.append(make("span", sending.failed ? "failed" : "state", sending.failed || "sending…"));
  return element;
}

// ---- what is said

function say(body) {
  const one = shown;
  const content = { content_type: "text/plain", text: body };
  if (editing) {
    const { seq } = editing;
    editing = null;
    connection.ask("edit", { conversation: one.id, seq, content }).then(() => pull(one, seq, seq)).catch(complain);
    return show();
  }
  const sending = { text: body };
  one.sending.push(sending);
  show();
  connection.ask("send", { target: target(one.id), content, priority: "normal" }).then(async (sent) => {
    const before = one.head;
    one.sending.splice(one.sending.indexOf(sending), 1);
    put(one, {
      seq: sent.seq, time: sent.time, sender: me, kind: "user", content, reactions: [], message_id: sent.message_id,
    });
    one.listed = true;
    show();
    showList();
    if (sent.seq > before + 1) await pull(one, before + 1, sent.seq - 1);
  }, (error) => {
    sending.failed = error.message;
    show();
  }).catch(() => {});
}

let signalled = -Infinity;
function typing() {
  const now = performance.now();
  if (!shown || !connection.live || now - signalled < 2000) return;
  signalled = now;
  connection.post("signal", { target: target(shown.id), kind: "typing", content: { content_type: "text/plain", text: "on" } }).catch(() => {});
}

// ---- what is heard

function heard(type, body) {
  const one = body.conversation && conversation(body.conversation);
  if (type === "push") {
    const { message } = body;
    const gap = one.head && message.seq > one.head + 1 && one.messages.size ? [one.head + 1, message.seq - 1] : null;
    put(one, message);
    one.listed = true;
    one.typing.delete(message.sender);
    if (message.sender !== me && message.kind === "user") one.unread += 1;
    if (gap) pull(one, ...gap).catch(() => {});
    if (message.kind !== "user" && isGroup(one.id) && one === shown && !message.target) members(one).catch(() => {});
    read();
  } else if (type === "lagged") {
    pull(one, one.head + 1, body.head).catch(() => {});
  } else if (type === "signalled" && body.kind === "typing") {
    clearTimeout(one.typing.get(body.user));
    one.typing.set(body.user, setTimeout(() => one.typing.delete(body.user) && show(), 4000));
  } else if (type === "receipt") {
    one.reads.set(body.user, Math.max(body.seq, one.reads.get(body.user) || 0));
  } else if (type === "read_moved") {
    one.unread = body.unread;
  } else if (type === "list_changed") {
    list().catch(() => {});
  }
  show();
  showList();
}

// ---- logging in

function logIn(token) {
  const device = sessionStorage.device || (sessionStorage.device = `web-${uuid().slice(0, 8)}`);
  const url = `${location.origin.replace(/^http/, "ws")}/ws`;
  let ever = false;
  connection = new Connection(url, token, device, {
    async live(answer) {
      me = answer.user;
      sessionStorage.token = token;
      $("login").hidden = true;
      $("app").hidden = false;
      $("me").textContent = me;
      document.title = `${me} · Convoke`;
      $("status").textContent = "online";
      if (ever) await catchUp();
      ever = true;
      await list();
      read();
    },
    away(wait) {
      $("status").textContent = ever ? "offline, coming back…" : "";
      if (!ever) $("login-error").textContent = `The node does not answer; trying again (${Math.round(wait)} ms).`;
    },
    ended(why) {
      sessionStorage.removeItem("token");
      $("app").hidden = true;
      $("login").hidden = false;
      $("login-error").textContent = why;
    },
    event: heard,
  });
}

// After a reconnect: what was said meanwhile in what is on the page.
async function catchUp() {
  const behind = [...known.values()].filter((one) => one.messages.size);
  const cursors = behind.slice(0, connection.limits.max_ranges).map((one) => ({ conversation: one.id, seq: one.head }));
  let after;
  do {
    const synced = await connection.post("sync", { cursors: cursors.filter((c) => !after || c.conversation > after), after });
    for (const told of synced.conversations) {
      const one = conversation(told.conversation);
      if (one.messages.size && told.head > one.head) await pull(one, one.head + 1, told.head);
      one.unread = told.unread;
    }
    after = synced.next;
  } while (after);
  // What was edited, recalled or reacted to meanwhile is in the messages themselves.
  if (shown && shown.messages.size) await pull(shown, Math.max(shown.first, shown.head - 50), shown.head);
}

function askFor(heading, withName) {
  const dialog = $("ask");
  const form = dialog.firstElementChild;
  form.reset();
  form.querySelector("h2").textContent = heading;
  $("ask-name").hidden = !withName;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const members = form.members.value.split(/\s+/).filter(Boolean);
      resolve(dialog.returnValue === "yes" ? { name: form.elements.name.value, members } : null);
    };
  });
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  $("login-error").textContent = "";
  logIn($("token").value.trim());
};
$("logout").onclick = () => {
  connection.post("logout", {}).catch(() => {});
  connection.end("Logged out.");
  known.clear();
  shown = null;
};
$("open").onsubmit = (event) => {
  event.preventDefault();
  const user = $("whom").value.trim();
  $("whom").value = "";
  if (user) openConversation(directId(user));
};
$("new-group").onclick = async () => {
  const asked = await askFor("New group", true);
  if (!asked) return;
  connection.ask("create_group", { profile: { name: asked.name }, members: asked.members }).then(async (made) => {
    conversation(made.conversation).name = asked.name;
    await list();
    openConversation(made.conversation);
  }).catch(complain);
};
$("add").onclick = async () => {
  const one = shown;
  const asked = await askFor("Add members", false);
  if (!asked || !asked.members.length) return;
  connection.ask("add_members", { group: one.id.slice(2), users: asked.members }).then(() => members(one)).catch(complain);
};
$("cancel").onclick = () => {
  editing = null;
  $("text").value = "";
  show();
};
$("older").onclick = () => older(shown).catch(complain);
$("say").onsubmit = (event) => {
  event.preventDefault();
  const body = $("text").value.trim();
  $("text").value = "";
  if (body) say(body);
};
$("text").oninput = typing;
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("say").requestSubmit();
  }
};
document.onvisibilitychange = read;

const given = new URLSearchParams(location.hash.slice(1)).get("token");
// A token is not to stay in the address, nor in the history.
if (given) history.replaceState(null, "", location.pathname);
if (given || sessionStorage.token) logIn(given || sessionStorage.token);
