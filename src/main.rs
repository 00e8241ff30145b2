//! The `convoke` binary: reads the command line and hands over to `cmd`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// The C library's allocator keeps what each thread once had, and what comes and goes leaves holes among what stays: a busy node grew
/// although what it had in use did not. This one gives pages back after a second (`.cargo/config.toml`), and things of one size lie together.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    convoke::cmd::main()
}
