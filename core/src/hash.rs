//! A stable hash for names.
//!
//! Ring and Maglev put a member where its key says, and a token names its group by four bytes. If those changed with a
//! version of the proxy, an upgrade would move every session, empty every cache and void every token, so the function is
//! fixed here: FNV-1a over the bytes (Fowler, Noll, Vo), then SplitMix64's finaliser, because FNV alone spreads short,
//! similar keys (`10.0.0.1:80`, `10.0.0.2:80`) badly. It is not for hostile input: names come from configuration,
//! discovery and the cluster's own members, the hash of a request comes from the shell.

use crate::dice::scramble;

/// The hash of a name.
pub(crate) const fn of_key(key: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < key.len() {
        hash = (hash ^ key[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    scramble(hash)
}

/// The `n`th hash of the same key.
pub(crate) const fn nth(hash: u64, n: u64) -> u64 {
    scramble(hash.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_members_never_change() {
        assert_eq!(of_key(b""), scramble(0xcbf2_9ce4_8422_2325));
        // FNV-1a of "a" as published: af63dc4c8601ec8c.
        assert_eq!(of_key(b"a"), scramble(0xaf63_dc4c_8601_ec8c));
        assert_eq!(nth(7, 0), scramble(7));
    }
}
