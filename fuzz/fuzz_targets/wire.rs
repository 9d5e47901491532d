//! Where the sources look for the codec.
#![allow(unused_imports, reason = "no target uses everything")]

pub(crate) use crate::http1;
