//! What a node asked the kernel to do, and in which order, as strace writes it down.

use std::path::Path;
use std::process::Command;

use crate::harness::command::run;

/// Why nothing can be traced here, if so.
pub(super) async fn is_possible() -> Result<(), String> {
    let installed = Command::new("strace").arg("-V").output();
    if installed.is_err() {
        return Err("strace is not installed (scripts/test installs it)".to_owned());
    }
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "true"]);
    let tried = run(command, Vec::new()).await;
    if tried.code == Some(0) { Ok(()) } else { Err(format!("strace may not trace: {}", tried.stderr)) }
}

/// What to start a node with so that it is traced into a file.
pub(super) fn command(file: &Path) -> Vec<String> {
    let calls = "trace=read,readv,recvfrom,recvmsg,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,fsync,fdatasync,msync";
    let words = ["strace", "-f", "-yy", "-s", "4096", "-e", calls, "-e", "signal=none", "-o"];
    words.into_iter().chain([file.to_str().unwrap()]).map(str::to_owned).collect()
}

/// One call; other calls may lie between its begin and its end.
#[derive(Debug)]
struct Call {
    name: String,
    /// The descriptor and what it stands for, such as `9<TCP:[127.0.0.1:1->127.0.0.1:2]>`.
    on: String,
    text: String,
    begin: usize,
    end: usize,
    failed: bool,
}

impl Call {
    fn reads(&self) -> bool {
        ["read", "readv", "recvfrom", "recvmsg"].contains(&self.name.as_str())
    }

    fn syncs(&self) -> bool {
        ["fsync", "fdatasync"].contains(&self.name.as_str())
    }

    fn writes(&self) -> bool {
        !self.reads() && !self.syncs()
    }

    fn is_on_journal(&self) -> bool {
        self.on.contains(".jnl")
    }
}

/// All calls in the order of their begin.
#[derive(Debug)]
pub(super) struct Trace(Vec<Call>);

impl Trace {
    pub(super) fn parse(text: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        // The call that each thread is in.
        let mut unfinished = std::collections::HashMap::<&str, usize>::new();
        for (line_number, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(char::is_whitespace) else { continue };
            let rest = rest.trim_start();
            if rest.starts_with("<...") {
                if let Some(at) = unfinished.remove(thread) {
                    let call = &mut calls[at];
                    call.text.push_str(rest);
                    call.end = line_number;
                    call.failed = has_failed(rest);
                }
                continue;
            }
            let Some((name, arguments)) = rest.split_once('(') else { continue };
            let on =
                arguments.find(">,").or_else(|| arguments.find(">)")).or_else(|| arguments.find("> <unf"));
            let on = on.map_or(arguments, |end| &arguments[..=end]).to_owned();
            let is_whole = !rest.ends_with("<unfinished ...>");
            if !is_whole {
                unfinished.insert(thread, calls.len());
            }
            calls.push(Call {
                name: name.to_owned(),
                on,
                text: rest.to_owned(),
                begin: line_number,
                end: if is_whole { line_number } else { usize::MAX },
                failed: is_whole && has_failed(rest),
            });
        }
        Self(calls)
    }

    /// From the request with this mark: it is read, the journal is written, a sync of the journal begins after that
    /// and ends well, and only then begins the first write to the same socket.
    pub(super) fn assert_synced_before_ack(&self, mark: &str) {
        let find = |what: &str, after: usize, wanted: &dyn Fn(&Call) -> bool| {
            let found =
                self.0.iter().filter(|call| call.begin >= after && !call.failed).find(|call| wanted(call));
            found.unwrap_or_else(|| panic!("{mark}: {what} is not in the trace after line {after}"))
        };
        let request = find("the request", 0, &|call| call.reads() && call.text.contains(mark));
        let written =
            find("the journal's write", request.begin, &|call| call.writes() && call.is_on_journal());
        let synced = find("the sync", written.end, &|call| call.syncs() && call.is_on_journal());
        let ack = find("the ack", request.end, &|call| call.writes() && call.on == request.on);
        assert!(
            synced.end < ack.begin,
            "{mark}: the ack leaves before the sync is over:\n{written:?}\n{synced:?}\n{ack:?}"
        );
    }
}

fn has_failed(line: &str) -> bool {
    line.rsplit_once(" = ").is_some_and(|(_, result)| result.starts_with('-'))
}

#[test]
fn a_trace_is_read_and_one_that_acks_too_early_is_noticed() {
    let lines = |order: [usize; 5]| {
        let all = [
            r#"11 recvfrom(9<TCP:[a->b]>, "..mark-000..", 8192, 0, NULL, NULL) = 120"#,
            r#"12 write(5</d/0.jnl>, "\1\2", 2) = 2"#,
            r#"12 fdatasync(5</d/0.jnl> <unfinished ...>"#,
            r#"12 <... fdatasync resumed>)            = 0"#,
            r#"11 sendto(9<TCP:[a->b]>, "\0\0", 2, MSG_NOSIGNAL, NULL, 0) = 2"#,
        ];
        order.map(|n| all[n]).join("\n")
    };
    Trace::parse(&lines([0, 1, 2, 3, 4])).assert_synced_before_ack("mark-000");
    for wrong in [[0, 1, 2, 4, 3], [0, 4, 1, 2, 3], [0, 2, 3, 1, 4]] {
        let trace = Trace::parse(&lines(wrong));
        assert!(
            std::panic::catch_unwind(|| trace.assert_synced_before_ack("mark-000")).is_err(),
            "{wrong:?}"
        );
    }
}
