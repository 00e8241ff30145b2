# What scripts/cluster and scripts/faults share. Sourced by them: `here` is the root, NODES the folder with a folder for each node.

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# A command, and the Debian package that brings it.
need() {
    command -v "$1" >/dev/null && return
    command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || fail "$1 is missing: apt-get install $2"
    echo "installing $2" >&2
    DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >&2
}

alive() {
    [ -e "$NODES/$1/pid" ] && kill -0 "$(cat "$NODES/$1/pid")" 2>/dev/null
}

# Waits until a condition holds, at most so many seconds.
await() {
    local seconds=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "$what did not come within $seconds s"
        sleep 0.1
    done
}

# The binary that is tried: the one that was named, or built now.
program() {
    if [ -n "${CONVOKE_TEST_BIN:-}" ]; then
        [ -x "$CONVOKE_TEST_BIN" ] || fail "$CONVOKE_TEST_BIN is no program"
        echo "$CONVOKE_TEST_BIN"
        return
    fi
    cargo build --release --quiet --bin convoke >&2
    echo "${CARGO_TARGET_DIR:-$here/target}/release/convoke"
}
