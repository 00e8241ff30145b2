//! The bounds of what clients may do.

use super::section::section;

section! {
    /// The bounds of what clients may do. What is told to a client when it connects holds for that connection.
    Limits in "limits" {
        /// Connections of all clients together. Each needs a file descriptor.
        Running max_connections: u32 = 100_000, in 1..=10_000_000;
        /// Connections from one IP address; 0: no limit. Loopback is exempt.
        Running max_connections_per_ip: u32 = 1_000, in 0..=10_000_000;
        /// The longest frame, in bytes.
        Restart max_frame_bytes: usize = 1 << 20, in 4_096..=16_777_216;
        /// The longest body of a message, in bytes; at most half of max_frame_bytes, since JSON carries it in base64.
        Restart max_body_bytes: usize = 256 << 10, in 1..=8_388_608;
        /// Requests of one session that wait for their answers; the next one is not read until an answer leaves.
        Restart max_in_flight: u32 = 64, in 1..=65_536;
        /// Bytes that wait for one session's socket; above it pushes are left out and the client is told to fetch them.
        Restart max_outbound_bytes: usize = 256 << 10, in 4_096..=67_108_864;
        /// Messages in one page of history.
        Restart max_page_messages: u32 = 200, in 1..=10_000;
        /// Bytes of bodies in one page, at most max_frame_bytes; one message is always in it.
        Restart max_page_bytes: usize = 512 << 10, in 1_024..=16_777_216;
        /// Ranges in one pull, and cursors in one ack or sync.
        Restart max_ranges: u32 = 100, in 1..=10_000;
        /// Messages one session may send per second, in the long run; 0: no limit.
        Running send_rate_per_s: u32 = 0, in 0..=1_000_000;
        /// Messages one session may send at once when it was quiet before; counts only with send_rate_per_s.
        Running send_burst: u32 = 100, in 1..=1_000_000;
    }
}
