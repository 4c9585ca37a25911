//! A strict reader of the OpenMetrics text form: Prometheus accepts whatever it accepts.
//!
//! Rule: written from the specification (OpenMetrics 1.0), not from what any encoder writes; every doubt is
//! an error. Timestamps, exemplars and the types that warmd does not use are not read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: String,
    pub kind: SampleKind,
    pub help: String,
    pub samples: Vec<MetricSample>,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSample {
    /// With the suffix that its kind adds.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Family {
    /// The sum of the samples with this suffix whose labels include these.
    pub fn sum(&self, suffix: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("{}{suffix}", self.name);
        let fits = |sample: &&MetricSample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|have| have == value);
            sample.name == name && labels.iter().all(has)
        };
        self.samples.iter().filter(fits).map(|sample| sample.value).sum()
    }
}

/// Reads a whole exposition.
pub fn parse(text: &str) -> Result<Vec<Family>> {
    let body = text.strip_suffix("# EOF\n").context("it does not end with # EOF")?;
    let mut families: Vec<Family> = Vec::new();
    for (number, line) in body.lines().enumerate() {
        take(&mut families, line).with_context(|| format!("line {}: {line}", number + 1))?;
    }
    let names: BTreeSet<_> = families.iter().map(|family| family.name.as_str()).collect();
    ensure!(names.len() == families.len(), "a metric comes twice");
    for family in &families {
        check(family).with_context(|| family.name.clone())?;
    }
    Ok(families)
}

/// Metadata comes first: HELP opens a metric here, TYPE follows at once, and its samples are contiguous.
fn take(families: &mut Vec<Family>, line: &str) -> Result<()> {
    if let Some(rest) = line.strip_prefix("# HELP ") {
        let (name, help) = rest.split_once(' ').context("no help text")?;
        ensure!(is_name(name), "{name} is no name");
        let family =
            Family { name: name.to_owned(), kind: SampleKind::Gauge, help: help.to_owned(), samples: vec![] };
        families.push(family);
        return Ok(());
    }
    let family = families.last_mut().context("a line before any metadata")?;
    if let Some(rest) = line.strip_prefix("# TYPE ") {
        let (name, kind) = rest.split_once(' ').context("no type")?;
        ensure!(name == family.name && family.samples.is_empty(), "out of place");
        family.kind = match kind {
            "counter" => SampleKind::Counter,
            "gauge" => SampleKind::Gauge,
            "histogram" => SampleKind::Histogram,
            "info" => SampleKind::Info,
            other => bail!("unknown type {other}"),
        };
        return Ok(());
    }
    ensure!(!line.starts_with('#'), "a comment that OpenMetrics does not have");
    let sample = sample(line)?;
    let suffix = sample.name.strip_prefix(&family.name).context("a sample of another metric")?;
    let allowed: &[&str] = match family.kind {
        SampleKind::Counter => &["_total"],
        SampleKind::Gauge => &[""],
        SampleKind::Histogram => &["_bucket", "_sum", "_count"],
        SampleKind::Info => &["_info"],
    };
    ensure!(allowed.contains(&suffix), "a sample of another metric or kind");
    family.samples.push(sample);
    Ok(())
}

fn sample(line: &str) -> Result<MetricSample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let (name, rest) = line.split_at(name_end);
    ensure!(is_name(name), "{name} is no name");
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = value.strip_prefix(' ').context("no space before the value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => {
            let plain = number.chars().all(|each| each.is_ascii_digit() || "+-.eE".contains(each));
            ensure!(plain, "{number:?} is no number");
            number.parse()?
        }
    };
    Ok(MetricSample { name: name.to_owned(), labels, value })
}

/// The labels, and the rest after the closing brace.
fn labels(text: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        if let Some(end) = rest.strip_prefix('}') {
            ensure!(labels.is_empty(), "a comma before the brace");
            return Ok((labels, end));
        }
        let (key, quoted) = rest.split_once("=\"").context("a label without a value")?;
        ensure!(is_name(key) && !key.contains(':'), "{key:?} is no label's name");
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next().context("a value without its end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().context("an escape without its end")?.1 {
                    'n' => '\n',
                    '"' => '"',
                    '\\' => '\\',
                    other => bail!("\\{other} is no escape"),
                }),
                (_, plain) => value.push(plain),
            }
        };
        ensure!(labels.insert(key.to_owned(), value).is_none(), "the label {key} comes twice");
        rest = &quoted[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok((labels, rest.strip_prefix('}').context("no brace after the labels")?)),
        }
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_' || first == ':')
        && chars.all(|each| each.is_ascii_alphanumeric() || each == '_' || each == ':')
}

fn check(family: &Family) -> Result<()> {
    ensure!(!family.samples.is_empty(), "no sample");
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        ensure!(seen.insert((&sample.name, &sample.labels)), "{sample:?} comes twice");
        ensure!(!sample.value.is_nan(), "{sample:?}");
        let counts = family.kind != SampleKind::Gauge;
        ensure!(!counts || (sample.value >= 0.0 && sample.value.is_finite()), "{sample:?}");
        let le = sample.labels.contains_key("le");
        ensure!(le == sample.name.ends_with("_bucket"), "`le` belongs to buckets: {sample:?}");
    }
    if family.kind == SampleKind::Histogram {
        check_histogram(family)?;
    }
    Ok(())
}

/// Buckets grow, their bounds rise, the last is infinite and equals the count.
fn check_histogram(family: &Family) -> Result<()> {
    let mut series: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in family.samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
        let mut labels = sample.labels.clone();
        let le = labels.remove("le").context("a bucket without its bound")?;
        let bound = if le == "+Inf" { f64::INFINITY } else { le.parse()? };
        series.entry(labels).or_default().push((bound, sample.value));
    }
    for (labels, buckets) in series {
        ensure!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{labels:?}: {buckets:?}");
        let (bound, all) = *buckets.last().context("no bucket")?;
        let pairs: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let counted = family.sum("_count", &pairs);
        ensure!(bound == f64::INFINITY && (all - counted).abs() < 0.5, "{labels:?}: {buckets:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{x=\"q\\\"\\n\\\\,}\",y=\"\"} 1.5e3\na_b_total 0\n\
                        # HELP h H.\n# TYPE h histogram\nh_sum 2.0\nh_count 3\nh_bucket{le=\"1.0\"} 1\n\
                        h_bucket{le=\"+Inf\"} 3\n# EOF\n";

    #[test]
    fn what_is_right_is_read() {
        let families = parse(GOOD).unwrap();
        assert_eq!(
            (families.len(), families[0].kind, families[1].kind),
            (2, SampleKind::Counter, SampleKind::Histogram)
        );
        assert_eq!(families[0].samples[0].labels["x"], "q\"\n\\,}");
        assert_eq!(
            (families[0].sum("_total", &[]), families[0].sum("_total", &[("y", "")])),
            (1500.0, 1500.0)
        );
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (old, new) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n\n"),
            ("a_b_total 0", "a_b 0"),
            ("a_b_total 0", "a_b_total -1"),
            ("a_b_total 0", "a_b_total 0x1"),
            ("a_b_total 0", "a_b_total  0"),
            ("a_b_total 0", "a_b_total{x=\"\\t\"} 0"),
            ("a_b_total 0", "a_b_total{x=\"1\",x=\"2\"} 0"),
            ("a_b_total 0", "a_b_total{x=\"1\",} 0"),
            ("a_b_total 0", "a_b_total{2x=\"1\"} 0"),
            ("a_b_total 0", "a_b_total 0\na_b_total 0"),
            ("a_b_total 0", "a_b_total 0\n"),
            ("# TYPE a_b counter", "# TYPE a_b summary"),
            ("# HELP h H.\n", ""),
            ("h_count 3", "h_count 4"),
            ("\"+Inf\"} 3", "\"2.0\"} 3"),
            ("le=\"1.0\"} 1", "le=\"1.0\"} 5"),
            ("h_bucket{le=\"1.0\"} 1\n", "h_bucket 1\n"),
        ] {
            assert!(GOOD.contains(old), "{old}");
            let text = GOOD.replacen(old, new, 1);
            assert!(parse(&text).is_err(), "{old} → {new} was taken");
        }
    }
}
