//! The web chat in a real browser: two pages talk, and the server dies in the middle.

use std::path::PathBuf;

use crate::harness::browser::{Browser, Page};
use crate::harness::http::http;
use crate::harness::{Setup, TestNode, finished};

/// Opens the page of a user who is logged in by its link.
pub(crate) async fn open(browser: &mut Browser, node: &TestNode, user: &str) -> Page {
    let url = format!("http://{}/#token={}", node.addresses().ws, node.token(user).await);
    let page = browser.open(&url).await;
    browser.until(&page, &format!("document.getElementById('me').textContent === '{user}'")).await;
    assert_eq!(browser.evaluate(&page, "location.hash").await, "", "the token does not stay in the address");
    page
}

/// Types into a field and sends its form, as somebody at a keyboard does.
pub(crate) async fn enter(browser: &mut Browser, page: &Page, form: &str, field: &str, text: &str) {
    let script = format!(
        "(() => {{ const field = document.getElementById('{field}'); field.value = {text:?}; \
         field.dispatchEvent(new Event('input', {{ bubbles: true }})); \
         document.getElementById('{form}').requestSubmit(); }})()"
    );
    browser.evaluate(page, &script).await;
}

pub(crate) async fn say(browser: &mut Browser, page: &Page, text: &str) {
    enter(browser, page, "say", "text", text).await;
}

const BUBBLES: &str = "[...document.querySelectorAll('.bubble')].map((b) => b.textContent)";

pub(crate) async fn sees(browser: &mut Browser, page: &Page, text: &str) {
    browser.until(page, &format!("{BUBBLES}.includes({text:?})")).await;
}

/// Presses what stands beside the message with this text.
async fn press(browser: &mut Browser, page: &Page, text: &str, which: &str) {
    let button = format!(
        "[...document.querySelectorAll('#messages li')].find((l) => l.querySelector('.bubble')?.textContent === {text:?})\
         ?.querySelector('{which}')"
    );
    // What is being sent shows already, and can be changed only once it was said.
    browser.until(page, &button).await;
    browser.evaluate(page, &format!("{button}.click()")).await;
}

async fn picture(browser: &mut Browser, page: &Page, name: &str) {
    if let Some(directory) = std::env::var_os("CONVOKE_TEST_PICTURES") {
        browser.picture(page, &PathBuf::from(directory).join(name)).await;
    }
}

#[tokio::test]
#[ignore = "needs chromium, which scripts/test installs"]
async fn two_pages_talk_and_a_server_that_dies_loses_nothing() {
    let mut node = TestNode::start().await;
    let mut browser = Browser::start().await;
    let alice = open(&mut browser, &node, "alice").await;
    let bob = open(&mut browser, &node, "bob").await;

    enter(&mut browser, &alice, "open", "whom", "bob").await;
    say(&mut browser, &alice, "hello <b>Bob</b>").await;
    browser.until(&bob, "document.querySelector('#conversations .unread')?.textContent === '1'").await;
    browser.evaluate(&bob, "document.querySelector('#conversations li').click()").await;
    sees(&mut browser, &bob, "hello <b>Bob</b>").await;
    assert_eq!(browser.evaluate(&bob, "document.querySelectorAll('.bubble b').length").await, 0);
    // Bob looks at it: Alice's page says so.
    browser.until(&alice, "document.querySelector('.state')?.textContent === '✓✓'").await;

    browser.evaluate(&bob, "(document.getElementById('text').oninput(), 1)").await;
    browser.until(&alice, "document.getElementById('typing').textContent === 'bob is typing…'").await;
    say(&mut browser, &bob, "hello Alice").await;
    sees(&mut browser, &alice, "hello Alice").await;
    press(&mut browser, &alice, "hello Alice", ".acts button").await;
    browser.until(&bob, "document.querySelector('.reaction')?.textContent === '👍 1'").await;

    press(&mut browser, &bob, "hello Alice", ".edit").await;
    say(&mut browser, &bob, "hello Alice!").await;
    sees(&mut browser, &alice, "hello Alice!").await;
    say(&mut browser, &bob, "a slip").await;
    sees(&mut browser, &bob, "a slip").await;
    press(&mut browser, &bob, "a slip", ".recall").await;
    sees(&mut browser, &alice, "recalled").await;
    picture(&mut browser, &alice, "web-chat.png").await;

    // The server dies. What is said meanwhile is sent when it is back, and everything is there once.
    node.keep_addresses();
    node.kill().await;
    browser.until(&alice, "document.getElementById('status').textContent.startsWith('offline')").await;
    say(&mut browser, &alice, "are you there?").await;
    browser
        .until(&alice, "document.querySelector('.mine:last-child .state')?.textContent === 'sending…'")
        .await;
    node.start_again().await;
    sees(&mut browser, &bob, "are you there?").await;
    browser.until(&alice, "!document.getElementById('messages').textContent.includes('sending…')").await;
    let expected = ["hello <b>Bob</b>", "hello Alice!", "recalled", "are you there?"];
    for page in [&alice, &bob] {
        assert_eq!(browser.evaluate(page, BUBBLES).await, serde_json::json!(expected));
    }

    // A group, from the dialog; and history after a reload.
    browser.evaluate(&alice, "document.getElementById('new-group').click()").await;
    let fill = "(() => { const form = document.querySelector('#ask form'); form.elements.name.value = 'Team'; \
                form.members.value = 'bob carol'; form.querySelector('button[value=yes]').click(); })()";
    browser.evaluate(&alice, fill).await;
    browser.until(&alice, "document.getElementById('members').textContent.startsWith('3 members')").await;
    say(&mut browser, &alice, "welcome all").await;
    let team =
        "[...document.querySelectorAll('#conversations li')].find((l) => l.textContent.includes('Team'))";
    browser.until(&bob, team).await;
    browser.evaluate(&bob, &format!("{team}.click()")).await;
    sees(&mut browser, &bob, "welcome all").await;
    picture(&mut browser, &bob, "web-chat-group.png").await;
    browser.evaluate(&bob, "(window.isOld = true, setTimeout(() => location.reload()), 1)").await;
    let loaded = format!("!window.isOld && document.getElementById('me').textContent === 'bob' && {team}");
    browser.until(&bob, &loaded).await;
    browser.evaluate(&bob, &format!("{team}.click()")).await;
    sees(&mut browser, &bob, "welcome all").await;

    // Closed by an operator, it says so and does not come back.
    finished(["admin", "kick", "bob", "--data", node.data().to_str().unwrap()]).await.good();
    browser.until(&bob, "document.getElementById('login-error').textContent.includes('operator')").await;
    enter(&mut browser, &bob, "login", "token", "not.a.token").await;
    browser.until(&bob, "document.getElementById('login-error').textContent.includes('token')").await;
}

#[tokio::test]
async fn the_page_is_served_unless_it_is_switched_off() {
    let node = TestNode::start().await;
    for (path, kind) in [("/", "text/html"), ("/chat.css", "text/css"), ("/chat.js", "text/javascript")] {
        let answer = http(node.addresses().ws, &format!("GET {path}"), None, b"").await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.contains(&format!("content-type: {kind}")), "{}", answer.head);
        assert!(answer.head.contains("content-security-policy: default-src 'self'"), "{}", answer.head);
    }
    let link = node.stderr();
    let link = link.lines().find_map(|line| line.trim().strip_prefix("bob: ")).unwrap();
    assert!(link.starts_with(&format!("http://{}/#token=", node.addresses().ws)), "{link}");
    let quiet = Setup::config("[websocket]\nchat = false").start().await;
    assert_eq!(http(quiet.addresses().ws, "GET /", None, b"").await.status, 404);
    assert!(!quiet.stderr().contains("#token="), "{}", quiet.stderr());
}
