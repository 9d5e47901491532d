//! Where the members of a cluster come from: fixed lists, DNS, files, HTTP.
