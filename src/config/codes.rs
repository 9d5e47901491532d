//! Every code a configuration can be answered with. A code is stable and never used for something else.

/// Code and meaning, in order.
pub const CODES: &[(&str, &str)] = &[
    (
        "E0101",
        "the text is not YAML, mostly because a line is not aligned with its siblings",
    ),
    ("E0102", "a tab in the indentation"),
    (
        "E0103",
        "a quote, `[` or `{` is never closed, or an escape does not exist",
    ),
    (
        "E0104",
        "a bare `*` starts a YAML alias: quote the value, or define the anchor",
    ),
    ("E0105", "an IPv6 address must be quoted"),
    ("E0106", "a name or a key is written twice"),
    ("E0107", "the file is empty"),
    (
        "E0108",
        "several documents, tags or directives of YAML, which are not supported",
    ),
    (
        "E0109",
        "not UTF-8, too large, nested too deeply, or too many values after aliases are expanded",
    ),
    (
        "E0110",
        "a value starts with a sign that means something in YAML: quote it",
    ),
    ("E0201", "an unknown field"),
    ("E0202", "a required field is missing"),
    (
        "E0203",
        "a list, a block or a single value where something else is wanted",
    ),
    ("E0204", "a key with nothing after it"),
    ("E0205", "two of several alternatives"),
    ("E0206", "none of several alternatives"),
    ("E0207", "a word that other proxies use"),
    ("E0208", "the file is written for another version of the format"),
    ("E0209", "a field that belongs to another block"),
    ("E0301", "not a duration"),
    ("E0302", "not a size"),
    ("E0303", "not a percentage"),
    ("E0304", "not a rate"),
    ("E0305", "not one of the words that are possible here"),
    ("E0306", "not an address, host or URL"),
    ("E0307", "a regex that does not compile"),
    (
        "E0308",
        "not a block of addresses; as a warning, one with bits beyond its length",
    ),
    ("E0309", "not a status, or not one that is possible here"),
    ("E0310", "a `${…}` that cannot be filled in"),
    ("E0311", "not a key to group requests by"),
    ("E0312", "a number or a duration out of its range"),
    (
        "E0313",
        "a word for true, false or off that is not the one used here",
    ),
    ("E0314", "a header that does not exist or may not be set"),
    ("E0315", "not a JSON pointer"),
    ("E0316", "not a path"),
    ("E0401", "a cluster that does not exist"),
    ("E0402", "a listener that does not exist"),
    ("E0403", "a policy that does not exist"),
    ("E0404", "a leader preset that does not exist"),
    (
        "E0405",
        "an included file that is not there, cannot be read, or includes itself",
    ),
    ("E0406", "a name defined in two files"),
    ("E0501", "two routes match the same requests"),
    ("E0502", "`strong` consistency without a leader"),
    ("E0503", "bounded staleness without a bound"),
    ("E0504", "a session store that does not know whose session it is"),
    ("E0505", "two listeners on one address"),
    ("E0506", "hashing without something to hash"),
    ("E0507", "all weights are 0"),
    ("E0508", "gRPC to a cluster that speaks HTTP/1.1"),
    ("E0509", "a static leader that is none or two"),
    ("E0510", "a test of the configuration fails"),
    ("E0511", "a promise that cannot be kept with what is configured"),
    ("E0512", "a redirect to itself"),
    ("E0513", "a prefix is to be replaced, and none is matched"),
    ("E0601", "a file that is named is not there"),
    ("E0602", "a certificate or key that cannot be used"),
    ("E0603", "an address that cannot be bound"),
    ("E0604", "an admin listener that anybody can reach"),
    ("E0605", "a port that needs a permission"),
    ("E0606", "no configuration file, or one that cannot be read"),
    (
        "E0607",
        "a certificate that has expired or does not fit its names",
    ),
    ("E0608", "a setting that cannot change while running"),
    ("E0609", "fewer file descriptors than connections"),
    (
        "E0610",
        "a block that this version knows and does not perform: never silently ignored",
    ),
    ("W0501", "a route that can never match"),
    ("W0502", "two durations that do not fit together"),
    ("W0503", "retries that may execute a write twice"),
    ("W0504", "a leader without an epoch"),
    ("W0505", "a cluster or policy that nobody uses"),
    ("W0506", "an outbound listener that no route takes"),
    ("W0508", "an upstream whose certificate nobody verifies"),
    ("W0601", "a certificate that expires soon"),
    ("H0701", "several endpoints and no health check"),
    ("H0702", "a route without a name"),
];

#[cfg(test)]
mod tests {
    use super::CODES;

    #[test]
    fn every_code_in_the_sources_is_listed_once() {
        let mut listed: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
        let count = listed.len();
        listed.dedup();
        assert_eq!(listed.len(), count);
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("sources") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("text");
                for (at, _) in text.match_indices('"') {
                    let Some(word) = text.get(at + 1..at + 7) else {
                        continue;
                    };
                    let is_code = word.ends_with('"')
                        && word.starts_with(['E', 'W', 'H'])
                        && word[1..5].bytes().all(|b| b.is_ascii_digit());
                    if is_code {
                        seen += 1;
                        assert!(listed.contains(&&word[..5]), "{} uses {word}", path.display());
                    }
                }
            }
        }
        assert!(seen > listed.len(), "the sources were found");
    }
}
