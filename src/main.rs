//! The `convoke` binary: reads the command line and hands over to `cmd`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// The C library's allocator keeps what it once had, and what comes and goes leaves holes among what stays: a busy node grew for as
/// long as it ran. This one gives pages back after a second (`.cargo/config.toml`), and things of one size lie together.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    convoke::cmd::main()
}
