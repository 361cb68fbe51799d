//! Reads TOML so that every error names file, line and key, and says how to mend it.
//!
//! The document becomes a tree of spans ([`toml::de::DeTable`]); a [`Section`] hands out its values by key, and
//! [`Section::finish`] refuses the keys that nobody asked for.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a configuration file, and the fix. The operator's to mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line in it, from 1; 0 if the file could not be read at all.
    pub line: usize,
    /// Dotted path of the key, empty if none is concerned.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key.escape_debug())?;
        }
        // One line, whatever the file holds.
        write!(f, ": {}", self.problem.replace(char::is_control, " "))
    }
}

impl std::error::Error for ConfigError {}

type Result<T> = std::result::Result<T, ConfigError>;

/// The line, from 1, that begins or goes on behind these octets.
pub(super) fn line(before: &[u8]) -> usize {
    before.iter().filter(|octet| **octet == b'\n').count() + 1
}

/// A file's text.
pub(super) struct Document<'a> {
    file: &'a Path,
    source: &'a str,
    /// Where each line ends: every key's line is asked for, in files of any length.
    ends: Vec<usize>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a Path, source: &'a str) -> Document<'a> {
        let ends = source.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at);
        Document { file, source, ends: ends.collect() }
    }

    fn line(&self, at: usize) -> usize {
        self.ends.partition_point(|end| *end < at) + 1
    }

    fn error(&self, at: usize, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError { file: self.file.into(), line: self.line(at), key: key.into(), problem: problem.into() }
    }

    /// Parses; a syntax error names its line.
    pub(super) fn parse(&self) -> Result<Spanned<DeTable<'a>>> {
        DeTable::parse(self.source).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let start = self.source[..at.min(self.source.len())].rfind('\n').map_or(0, |i| i + 1);
            let line = self.source[start..].lines().next().unwrap_or("");
            // Where no key is to be seen none is named: the line may be the rest of a secret.
            let key = match line.split_once('=') {
                Some((key, _)) => key.trim(),
                None if line.starts_with('[') => line.trim().trim_matches(['[', ']']),
                None => "",
            };
            let message = e.message().replace('\n', "; ");
            self.error(at, key, format!("this is not TOML: {message}"))
        })
    }

    /// The line on which the value of the key with this dotted path stands; 0 if there is none. Reads the whole text again.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let place = self.parse().ok().and_then(|table| place_of(table.get_ref(), key));
        place.map_or(0, |at| self.line(at))
    }

    pub(super) fn root(&'a self, table: &'a Spanned<DeTable<'a>>) -> Section<'a> {
        Section {
            document: self,
            path: String::new(),
            span: 0..0,
            table: table.get_ref(),
            known: RefCell::default(),
        }
    }
}

/// Where the value of the key with this dotted path begins. A key may have dots itself.
fn place_of(table: &DeTable<'_>, path: &str) -> Option<usize> {
    table.iter().find_map(|(key, value)| {
        let rest = path.strip_prefix(key.get_ref().as_ref())?;
        if rest.is_empty() {
            return Some(value.span().start);
        }
        place_of(value.get_ref().as_table()?, rest.strip_prefix('.')?)
    })
}

/// A table.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, if it is there.
    pub(super) fn optional(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        self.entry(key)
    }

    fn entry(&self, key: &str) -> Option<Value<'a>> {
        let value = self.table.get(key)?;
        Some(Value {
            document: self.document,
            path: self.path_of(key),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// The value of a key that must be there; `example` is shown if it isn't.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Result<Value<'a>> {
        self.optional(key).ok_or_else(|| self.missing(key, &format!("add `{key} = {example}`")))
    }

    pub(super) fn missing(&self, key: &str, fix: &str) -> ConfigError {
        self.document.error(self.span.start, &self.path_of(key), format!("is missing; {fix}"))
    }

    /// A table that may be left out: then it is empty.
    pub(super) fn section(&self, key: &'static str) -> Result<Section<'a>> {
        static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);
        match self.optional(key) {
            Some(value) => value.section(),
            None => Ok(Section {
                document: self.document,
                path: self.path_of(key),
                span: self.span.clone(),
                table: &EMPTY,
                known: RefCell::default(),
            }),
        }
    }

    /// All entries (their names are the user's), as they stand in the file.
    pub(super) fn entries(&self) -> Vec<(String, Value<'a>)> {
        let mut keys: Vec<_> = self.table.keys().map(|k| (k.span().start, k.get_ref().to_string())).collect();
        keys.sort();
        keys.into_iter().filter_map(|(_, k)| Some((k.clone(), self.entry(&k)?))).collect()
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> ConfigError {
        self.document.error(self.span.start, &self.path, problem)
    }

    /// An error about the value of a key, or about the section if it has no such key.
    pub(super) fn error_of(&self, key: &str, problem: &str) -> ConfigError {
        self.entry(key).map_or_else(|| self.error(problem), |value| value.error(problem))
    }

    /// Refuses keys that were not asked for.
    pub(super) fn finish(&self) -> Result<()> {
        let known = self.known.borrow();
        match self.table.keys().find(|k| !known.contains(&k.get_ref().as_ref())) {
            None => Ok(()),
            Some(key) => {
                let name = key.get_ref();
                let problem = match known.iter().find(|k| distance(k, name) <= 2) {
                    Some(close) => format!("is not a key here; did you mean `{close}`?"),
                    None => {
                        format!("is not a key here; take it out (the keys here are {})", known.join(", "))
                    }
                };
                Err(self.document.error(key.span().start, &self.path_of(name), problem))
            }
        }
    }
}

/// One value and where it stands.
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    path: String,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    pub(super) fn error(&self, problem: impl Into<String>) -> ConfigError {
        self.document.error(self.span.start, &self.path, problem)
    }

    /// Where it begins in the file.
    pub(super) fn place(&self) -> usize {
        self.span.start
    }

    pub(super) fn is_array(&self) -> bool {
        self.value.as_array().is_some()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.as_table().is_some()
    }

    pub(super) fn expected(&self, what: &str) -> ConfigError {
        self.error(format!("is {}, and must be {what}", article(self.value.type_str())))
    }

    pub(super) fn section(&self) -> Result<Section<'a>> {
        let table =
            self.value.as_table().ok_or_else(|| self.expected("a table, as in `{ key = \"value\" }`"))?;
        Ok(Section {
            document: self.document,
            path: self.path.clone(),
            span: self.span.clone(),
            table,
            known: RefCell::default(),
        })
    }

    pub(super) fn string(&self) -> Result<&'a str> {
        match self.value {
            DeValue::String(s) if s.is_empty() => {
                Err(self.error("is empty; write a value between the quotes"))
            }
            DeValue::String(s) => Ok(s),
            _ => Err(self.expected("a string in quotes")),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.expected("true or false, without quotes"))
    }

    /// A whole number within a range.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = self.value else { return Err(self.expected(&wanted)) };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if range.contains(&n) => Ok(n),
            _ => Err(self.error(format!("is {number}, and must be {wanted}"))),
        }
    }

    /// A number within a range.
    pub(super) fn float(&self, range: RangeInclusive<f64>) -> Result<f64> {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        let text = match self.value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            _ => return Err(self.expected(&wanted)),
        };
        match text.parse::<f64>() {
            Ok(n) if range.contains(&n) => Ok(n),
            _ => Err(self.error(format!("is {text}, and must be {wanted}"))),
        }
    }

    /// Like `"2s"`: a whole number and `ms`, `s`, `m`, `h` or `d`.
    pub(super) fn duration(&self) -> Result<Duration> {
        const FIX: &str = "a time in quotes: a whole number and ms, s, m, h or d, as in \"30s\"";
        let DeValue::String(text) = self.value else { return Err(self.expected(FIX)) };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(self.error(format!("\"{text}\" is no time; write {FIX}"))),
        };
        let total = number.parse::<u64>().ok().and_then(|n| n.checked_mul(milliseconds));
        // A century, so that sums of times never overflow.
        match total.filter(|ms| *ms <= 36_500 * 86_400_000) {
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => Err(self.error(format!("\"{text}\" is no time; write {FIX}, 36500d at most"))),
        }
    }

    /// A duration that isn't zero.
    pub(super) fn positive_duration(&self) -> Result<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() {
            Err(self.error("is zero; write a time of 1ms or more"))
        } else {
            Ok(duration)
        }
    }

    /// A number of octets: a whole number, or one in quotes with `k`, `m`, `g` or `t` (powers of 1,024).
    pub(super) fn octets(&self) -> Result<u64> {
        const MOST: u64 = 1 << 60;
        const FIX: &str = "a number of octets, or one with k, m, g or t in quotes, as in \"500m\"";
        let DeValue::String(text) = self.value else { return self.integer(0..=MOST) };
        let (number, shift) = match text.split_at_checked(text.len().saturating_sub(1)) {
            Some((number, "k")) => (number, 10),
            Some((number, "m")) => (number, 20),
            Some((number, "g")) => (number, 30),
            Some((number, "t")) => (number, 40),
            _ => (text.as_ref(), 0),
        };
        let digits = !number.is_empty() && number.bytes().all(|octet| octet.is_ascii_digit());
        let octets = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        octets
            .filter(|n| digits && *n <= MOST)
            .ok_or_else(|| self.error(format!("\"{text}\" is no amount; write {FIX}")))
    }

    /// One of these words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T> {
        let text = self.string()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.error(format!("\"{text}\" is not known here; write {}", all.join(" or ")))
        })
    }

    /// The address of one host.
    pub(super) fn address(&self) -> Result<IpAddr> {
        const SUCH: &str = "write one such as \"192.0.2.2\" or \"2001:db8::2\"";
        let text = self.string()?;
        let address = text.parse().map_err(|_| self.error(format!("\"{text}\" is no IP address; {SUCH}")))?;
        match address {
            IpAddr::V4(a) if a.is_unspecified() || a.is_multicast() || a.is_broadcast() => {
                Err(self.error(format!("{text} is not the address of one host; {SUCH}")))
            }
            IpAddr::V6(a) if a.is_unspecified() || a.is_multicast() || a.to_ipv4_mapped().is_some() => {
                Err(self.error(format!("{text} is not the address of one host; {SUCH}")))
            }
            // RFC 4291 section 2.5.6: it would mean another host on each link.
            IpAddr::V6(a) if a.is_unicast_link_local() => Err(self.error(format!(
                "{text} is of one link only; write one that is routed, such as \"2001:db8::2\""
            ))),
            _ => Ok(address),
        }
    }

    /// An array of one to `most` values.
    pub(super) fn array(&self, most: usize) -> Result<Vec<Value<'a>>> {
        let array = self.value.as_array().ok_or_else(|| self.expected("an array, as in `[\"value\"]`"))?;
        if array.is_empty() || array.len() > most {
            let wanted = if most == 1 { "exactly one".into() } else { format!("1 to {most}") };
            return Err(self.error(format!("has {} values; write {wanted}", array.len())));
        }
        let value = |(i, v): (usize, &'a Spanned<DeValue<'a>>)| Value {
            document: self.document,
            path: if array.len() == 1 { self.path.clone() } else { format!("{}[{i}]", self.path) },
            span: v.span(),
            value: v.get_ref(),
        };
        Ok(array.iter().enumerate().map(value).collect())
    }
}

fn article(noun: &str) -> String {
    let an = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if an { "an" } else { "a" })
}

/// How many letters two keys differ by (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
