//! `convoke chat` between pipes, as a script uses it.

use crate::harness::client::conversation;
use crate::harness::command::{Talking, convoke, run};
use crate::harness::{Setup, TestClient, TestNode, eventually, finished};
use convoke_protocol::framing::Framing;

/// The arguments of a chat of `user` with `peer`.
fn arguments(node: &TestNode, user: &str, peer: &str) -> Vec<String> {
    let data = node.data().to_str().unwrap();
    let tcp = node.addresses().tcp.to_string();
    ["chat", "--user", user, "--data", data, "--tcp", &tcp, "--to", peer].map(str::to_owned).into()
}

fn chat(node: &TestNode, user: &str, peer: &str) -> Talking {
    Talking::start(arguments(node, user, peer))
}

/// Waits until all have printed exactly this.
async fn all_print(chats: &[&Talking], expected: &[String]) {
    let expected = expected.concat();
    for chat in chats {
        eventually("the chat prints what was said", async || {
            let printed = chat.printed();
            assert!(
                expected.starts_with(&printed),
                "printed:\n{printed}\nexpected:\n{expected}\n{}",
                chat.complaints()
            );
            (printed == expected).then_some(())
        })
        .await;
    }
}

fn line(seq: usize, sender: &str, text: &str) -> String {
    format!("d:alice:bob {seq} {sender} {text}\n")
}

#[tokio::test]
async fn two_people_talk_and_each_message_is_printed_once() {
    let node = TestNode::start().await;
    let mut alice = chat(&node, "alice", "bob");
    let mut bob = chat(&node, "bob", "alice");
    let mut expected = Vec::new();
    for (seq, text) in
        ["hello, Bob", "grüße  with  spaces", "d:alice:bob 7 mallory hi"].into_iter().enumerate()
    {
        let (seq, by_alice) = (2 * seq + 1, format!("{text}\n"));
        alice.write(&by_alice);
        expected.push(line(seq, "alice", text));
        all_print(&[&alice, &bob], &expected).await;
        bob.write("yes\n");
        expected.push(line(seq + 1, "bob", "yes"));
        all_print(&[&alice, &bob], &expected).await;
    }
    // Who comes later gets the history first, then what is live.
    let late = chat(&node, "bob", "alice");
    all_print(&[&late], &expected).await;
    alice.write("welcome\n");
    expected.push(line(7, "alice", "welcome"));
    all_print(&[&alice, &bob, &late], &expected).await;
    for one in [alice, bob, late] {
        assert_eq!(one.finish().await.good(), expected.concat());
    }
}

#[tokio::test]
async fn a_killed_server_costs_nothing_and_nothing_comes_twice() {
    let mut node = TestNode::start().await;
    node.keep_addresses();
    let mut alice = chat(&node, "alice", "bob");
    let mut bob = chat(&node, "bob", "alice");
    let mut expected = Vec::new();
    for life in 0..3 {
        for _ in 0..3 {
            let (seq, text) = (expected.len() + 1, format!("{life}, while it runs"));
            alice.write(&format!("{text}\n"));
            expected.push(line(seq, "alice", &text));
            all_print(&[&alice, &bob], &expected).await;
        }
        // Written at once before the end of the server, and while it is away.
        for n in 0..5 {
            let (seq, text) = (expected.len() + 1, format!("{life}, {n} while it is killed"));
            bob.write(&format!("{text}\n"));
            expected.push(line(seq, "bob", &text));
            if n == 2 {
                node.kill().await;
            }
        }
        node.start_again().await;
        all_print(&[&alice, &bob], &expected).await;
    }
    for one in [alice, bob] {
        assert_eq!(one.finish().await.good(), expected.concat());
    }
    let mut reader = TestClient::login(&node, Framing::Tcp, "bob", "reader").await;
    assert_eq!(reader.pull_all(&conversation("alice", "bob")).await.len(), expected.len());
}

#[tokio::test]
async fn at_the_end_of_input_it_waits_for_the_acks() {
    let mut node = TestNode::start().await;
    node.keep_addresses();
    let lines: Vec<_> = (0..300).map(|n| format!("line {n}")).collect();
    let mut alice = chat(&node, "alice", "bob");
    alice.write(&(lines.join("\n") + "\n"));
    alice.finish().await.good();
    let texts = async |node: &TestNode| {
        let mut reader = TestClient::login(node, Framing::Tcp, "alice", "reader").await;
        let messages = reader.pull_all(&conversation("alice", "bob")).await;
        messages.iter().map(|message| message.content.as_text().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&node).await, lines);
    // Also when nobody is there to ack them at first, and the last line has no end.
    let mut bob = chat(&node, "bob", "alice");
    eventually("the history is printed", async || {
        (bob.printed().lines().count() == lines.len()).then_some(())
    })
    .await;
    node.kill().await;
    bob.write("from far");
    let (ended, ()) = tokio::join!(bob.finish(), node.start_again());
    let printed = ended.good();
    assert_eq!(printed.lines().count(), lines.len() + 1);
    assert_eq!(printed.lines().last().unwrap(), line(lines.len() + 1, "bob", "from far").trim_end());
    assert_eq!(texts(&node).await.last().unwrap(), "from far");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let node = Setup::default().start().await;
    let tcp = node.addresses().tcp.to_string();
    let said =
        finished(["chat", "--user", "alice", "--token", "no.such.token", "--tcp", &tcp, "--to", "bob"]);
    let said = said.await.failed();
    assert!(said.contains("token"), "{said}");
    let said = finished(["chat", "--user", "alice", "--data", "/nowhere", "--tcp", &tcp, "--to", "bob"]);
    let said = said.await.failed();
    assert!(said.contains("/nowhere"), "{said}");
}

#[tokio::test]
async fn where_nobody_is_it_waits_a_while_and_says_so() {
    let mut node = TestNode::start().await;
    node.keep_addresses();
    let arguments = arguments(&node, "alice", "bob");
    let tcp = node.addresses().tcp.to_string();
    node.stop().await;
    let said = finished(&arguments).await.failed();
    assert!(said.contains(&format!("no session at {tcp}")), "{said}");
    // A node that comes within the while is as good as one that was there.
    let mut early = Talking::start(&arguments);
    early.write("is anybody there?\n");
    node.start_again().await;
    all_print(&[&early], &[line(1, "alice", "is anybody there?")]).await;
    early.finish().await.good();
}

#[tokio::test]
async fn a_script_makes_a_group_and_changes_what_it_said() {
    let node = TestNode::start().await;
    let (data, tcp) = (node.data().to_str().unwrap().to_owned(), node.addresses().tcp.to_string());
    let piped = async |more: &[&str], input: &str| {
        let mut command = convoke();
        command.args(["chat", "--user", "alice", "--data", &data, "--tcp", &tcp, "--commands"]).args(more);
        run(command, input.as_bytes().to_vec()).await
    };
    let made = piped(&[], "/create team bob\n").await.good();
    // Its first entry may or may not come before the end.
    assert!(made.starts_with("# made g:team; /group team opens it\n"), "{made}");
    let script = "helo\n/edit 2 hello\n/react 2 x\noops\n/recall 5\n/react 2 x\n//not a command\n/members\n/role bob admin\n/reactions 2 x\nbye\n";
    let said = piped(&["--group", "team"], script).await.good();
    let lines: Vec<_> = said.lines().collect();
    // Answers come as they are given; what was said comes in the order of its numbers.
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with('#')).copied().collect();
    assert_eq!(told, ["# there was nothing to change", "# alice (owner)", "# bob (member)", "# alice"]);
    let entries: Vec<_> = lines.iter().filter(|line| !line.starts_with('#')).copied().collect();
    let expected = [
        "g:team 1 alice [group team created: alice added, bob added]",
        "g:team 2 alice helo",
        "g:team 3 alice [edits 2] hello",
        "g:team 4 alice [gives x to 2, 1 now]",
        "g:team 5 alice oops",
        "g:team 6 alice [takes 5 back]",
        "g:team 7 alice /not a command",
        "g:team 8 alice [bob is admin]",
        "g:team 9 alice bye",
    ];
    assert_eq!(entries, expected);
    let again = piped(&["--group", "team"], "").await.good();
    assert!(again.contains("g:team 2 alice hello [edited] [x 1]\n"), "{again}");
    assert!(again.contains("g:team 5 alice [taken back]\n"), "{again}");
    let wrong = piped(&["--group", "team"], "/recall 99\n").await;
    assert!(wrong.code == Some(1) && wrong.stderr.contains("not_found"), "{wrong:?}");
    let wrong = piped(&["--group", "absent"], "hello\n").await;
    assert!(wrong.code == Some(1) && wrong.stderr.contains("not_found"), "{wrong:?}");
}
