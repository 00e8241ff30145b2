//! How many connections a node holds, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use convoke_protocol::error_code::ErrorCode;
use parking_lot::Mutex;

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of the node.
    pub max_connections: u32,
    /// Connections from one address; loopback has no such bound. Of IPv6 the first 64 bits count: the rest is for the
    /// client to choose.
    pub max_per_address: u32,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { max_connections: 100_000, max_per_address: 1_000 }
    }
}

#[derive(Debug)]
struct Taken {
    limits: ConnectionLimits,
    in_all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// The places there are for connections.
#[derive(Debug)]
pub struct ConnectionSlots(Mutex<Taken>);

impl ConnectionSlots {
    /// All of them free.
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Taken { limits, in_all: 0, by_address: HashMap::new() })))
    }

    /// Takes a place, which is free again when the slot is dropped.
    ///
    /// # Errors
    /// `TOO_MANY_CONNECTIONS` or `TOO_MANY_FROM_ADDRESS`.
    pub fn acquire(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionSlot, ErrorCode> {
        let address = counted_as(address);
        let mut taken = self.0.lock();
        if taken.in_all >= taken.limits.max_connections {
            return Err(ErrorCode::TOO_MANY_CONNECTIONS);
        }
        if let Some(address) = address {
            let most = taken.limits.max_per_address;
            let from_address = taken.by_address.get(&address).copied().unwrap_or(0);
            // 0 is no limit.
            if most > 0 && from_address >= most {
                return Err(ErrorCode::TOO_MANY_FROM_ADDRESS);
            }
            taken.by_address.insert(address, from_address + 1);
        }
        taken.in_all += 1;
        Ok(ConnectionSlot { slots: Arc::clone(self), address })
    }

    /// Places taken.
    pub fn taken(&self) -> u32 {
        self.0.lock().in_all
    }

    /// Changes the bounds; connections above them stay.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        self.0.lock().limits = limits;
    }
}

/// What an address is counted as; `None` for loopback.
fn counted_as(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => {
            const NETWORK: u128 = !(u64::MAX as u128);
            Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)))
        }
        address => Some(address),
    }
}

/// A connection's place.
#[derive(Debug)]
pub struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    address: Option<IpAddr>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock();
        taken.in_all -= 1;
        if let Some(address) = self.address
            && let Some(from_address) = taken.by_address.get_mut(&address)
        {
            *from_address -= 1;
            if *from_address == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn places_are_counted_by_node_and_address_and_come_back() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 5, max_per_address: 2 });
        let first = slots.acquire(ip("192.0.2.1")).expect("the first");
        let mapped = slots.acquire(ip("::ffff:192.0.2.1")).expect("the second of the same address");
        assert_eq!(slots.acquire(ip("192.0.2.1")).err(), Some(ErrorCode::TOO_MANY_FROM_ADDRESS));
        let loopback: Vec<_> =
            (0..3).map(|_| slots.acquire(ip("127.0.0.9")).expect("loopback is exempt")).collect();
        assert_eq!(slots.acquire(ip("192.0.2.2")).err(), Some(ErrorCode::TOO_MANY_CONNECTIONS));
        assert_eq!(slots.taken(), 5);
        drop((first, mapped, loopback));
        assert_eq!(slots.taken(), 0);
        assert!(slots.0.lock().by_address.is_empty(), "addresses that are gone are forgotten");
    }

    #[test]
    fn no_limit_is_none() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 9, max_per_address: 0 });
        let all: Vec<_> = (0..9).map(|_| slots.acquire(ip("192.0.2.1")).expect("no limit")).collect();
        drop(all);
        assert!(slots.0.lock().by_address.is_empty());
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 9, max_per_address: 1 });
        let _first = slots.acquire(ip("2001:db8:0:1::1")).expect("the first");
        assert_eq!(slots.acquire(ip("2001:db8:0:1:ffff::2")).err(), Some(ErrorCode::TOO_MANY_FROM_ADDRESS));
        let _other = slots.acquire(ip("2001:db8:0:2::1")).expect("another network");
        slots.set_limits(ConnectionLimits { max_connections: 9, max_per_address: 2 });
        let _second = slots.acquire(ip("2001:db8:0:1:ffff::2")).expect("the bound was raised");
    }
}
