//! A strict reader of the Prometheus text format, for tests.
//!
//! Stricter than Prometheus itself: it wants HELP and TYPE exactly once and first, families in one piece, no series
//! twice, histograms cumulative and complete, counters that are not negative and end in `_total`.

use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct Exposition {
    pub(crate) families: Vec<Family>,
}

#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Exposition {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        let mut families: Vec<Family> = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let Some(help) = line.strip_prefix("# HELP ") else {
                return Err(format!("expected HELP: {line}"));
            };
            let (name, help) = help.split_once(' ').ok_or("HELP without text")?;
            if help.is_empty() || !is_name(name) || families.iter().any(|family| family.name == name) {
                return Err(format!("bad or repeated family: {line}"));
            }
            let kind = lines
                .next()
                .and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")))
                .ok_or("no TYPE")?;
            let mut family = Family {
                name: name.to_owned(),
                kind: kind.to_owned(),
                samples: Vec::new(),
            };
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                family
                    .samples
                    .push(sample(line).map_err(|problem| format!("{problem}: {line}"))?);
            }
            family.check()?;
            families.push(family);
        }
        Ok(Self { families })
    }

    /// The value of the series written like this.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        let wanted = sample(&format!("{series} 0")).unwrap();
        let mut samples = self.families.iter().flat_map(|family| &family.samples);
        samples
            .find(|sample| sample.name == wanted.name && sample.labels == wanted.labels)
            .map(|sample| sample.value)
    }
}

impl Family {
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            let labels: BTreeSet<&str> = sample.labels.iter().map(|(name, _)| name.as_str()).collect();
            if labels.len() != sample.labels.len() {
                return Err(format!("{name}: a label is there twice"));
            }
            if !seen.insert((&sample.name, &sample.labels)) {
                return Err(format!("{name}: a series is there twice: {:?}", sample.labels));
            }
            let fits = match self.kind.as_str() {
                "counter" => sample.name == *name && name.ends_with("_total") && sample.value >= 0.0,
                "gauge" => sample.name == *name,
                "histogram" => sample.name.strip_prefix(name.as_str()).is_some_and(|rest| {
                    matches!(rest, "_bucket" | "_sum" | "_count")
                        && labels.contains("le") == (rest == "_bucket")
                }),
                _ => false,
            };
            if !fits || sample.value.is_nan() {
                return Err(format!("{name}: a {} may not have {sample:?}", self.kind));
            }
        }
        if self.samples.is_empty() {
            return Err(format!("{name}: no samples"));
        }
        if self.kind == "histogram" {
            self.check_histogram()
        } else {
            Ok(())
        }
    }

    fn check_histogram(&self) -> Result<(), String> {
        let mut rest = self.samples.as_slice();
        while !rest.is_empty() {
            let buckets = rest
                .iter()
                .take_while(|sample| sample.name.ends_with("_bucket"))
                .count();
            let (series, others) = rest
                .split_at_checked(buckets + 2)
                .ok_or("an incomplete histogram")?;
            rest = others;
            let [buckets @ .., sum, count] = series else {
                return Err("an incomplete histogram".to_owned());
            };
            let mut last = (f64::NEG_INFINITY, 0.0);
            for bucket in buckets {
                let (le, labels) = bucket.labels.split_last().ok_or("a bucket without le")?;
                let bound: f64 =
                    le.1.parse()
                        .map_err(|problem| format!("le={}: {problem}", le.1))?;
                if le.0 != "le" || labels != sum.labels || labels != count.labels {
                    return Err(format!("{}: buckets of another series", self.name));
                }
                if bound <= last.0 || bucket.value < last.1 {
                    return Err(format!("{}: not cumulative", self.name));
                }
                last = (bound, bucket.value);
            }
            let complete = last == (f64::INFINITY, count.value);
            if !complete || !sum.name.ends_with("_sum") || !count.name.ends_with("_count") || sum.value < 0.0
            {
                return Err(format!("{}: _count is not the last bucket", self.name));
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// `name{label="value",...} number`
fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err("not a name".to_owned());
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("no label")?;
            if !is_name(label) || label.contains(':') {
                return Err(format!("not a label: {label}"));
            }
            let (value, after) = quoted(after)?;
            labels.push((label.to_owned(), value));
            if let Some(after) = after.strip_prefix(',') {
                rest = after;
            } else {
                rest = after.strip_prefix('}').ok_or("labels do not end")?;
                break;
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    if !value.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && !["+Inf", "-Inf", "NaN"].contains(&value)
    {
        return Err("not a number".to_owned());
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().map_err(|problem| format!("{problem}"))?,
    })
}

/// The value up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => return Err(format!("bad escape {other:?}")),
            }),
            c => value.push(c),
        }
    }
    Err("a value does not end".to_owned())
}

#[test]
fn the_reader_refuses_what_prometheus_would_misread() {
    let good = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\"} 1\n";
    assert!(Exposition::parse(good).is_ok());
    for bad in [
        "a_total 1\n".to_owned(),
        good.trim_end().to_owned(),
        good.replace("a_total{", "b_total{"),
        good.replace("\"c\"", "\"c"),
        good.replace("\"c\"", "\"\\x\""),
        good.replace(" 1", " one"),
        good.replace(" 1", " -1"),
        format!("{good}{good}"),
        format!("{good}a_total{{b=\"c\"}} 2\n"),
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n"
            .to_owned(),
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n".to_owned(),
    ] {
        assert!(Exposition::parse(&bad).is_err(), "{bad}");
    }
}
