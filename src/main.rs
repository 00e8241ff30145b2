//! The `convoke` binary: reads the command line and hands over to `cmd`.

use std::process::ExitCode;

fn main() -> ExitCode {
    convoke::cmd::main()
}
