//! `[[quotas]]`, `[[host]]` and `[[datastore]]`: how much may be done at a time, by the time of day.
//!
//! Rule: a quota is checked at its place in the file; one that limits nothing, or whose window has no time
//! zone, is a mistake.

use std::{collections::BTreeSet, ops::Range};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use warmd_core::{
    model::quota::{ConfiguredQuotas, quota_endpoint_name},
    plan_file::text::{Text, TextError},
};
use warmd_schedules::{
    Tz,
    admission_queue::QuotaScope,
    quota::{Quota, problems},
    window::Holidays,
    zone::optional_zone,
};

/// The longest allowed name.
const LONGEST: usize = 1024;

/// The zone and the holidays of all windows in the file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Calendar {
    #[serde(with = "optional_zone")]
    zone: Option<Tz>,
    holidays: Holidays,
}

/// A host or a datastore, without its quotas.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaEndpoint {
    name: Spanned<String>,
    /// Of which source; of all, if absent.
    source: Option<Spanned<String>>,
}

/// Takes them out of the document.
pub(super) struct QuotaReader<'a> {
    text: Text<'a>,
    found: ConfiguredQuotas,
}

impl<'a> QuotaReader<'a> {
    /// Takes `zone` and `holidays`, which hold for all windows.
    pub(super) fn begin(text: Text<'a>, document: &mut DeTable) -> Result<Self, TextError> {
        let mut both = DeTable::new();
        for key in ["zone", "holidays"] {
            if let Some((key, value)) = document.remove_entry(key) {
                both.insert(key, value);
            }
        }
        let Calendar { zone, holidays } = text.read(Spanned::new(0..0, both))?;
        Ok(Self { text, found: ConfiguredQuotas { zone, holidays, scopes: Vec::new() } })
    }

    /// Takes the `quotas` of a table, which are those of `scope`.
    pub(super) fn take(&mut self, table: &mut DeTable, scope: QuotaScope) -> Result<(), TextError> {
        let Some(value) = table.remove("quotas") else { return Ok(()) };
        let span = value.span();
        let places = places(&value);
        let DeValue::Array(_) = value.get_ref() else {
            return Err(self.text.wrong(Some(span), "`quotas` is a list: write `[[quotas]]`, once for each"));
        };
        let mut one = DeTable::new();
        one.insert(Spanned::new(span.clone(), "quotas".into()), value);
        let List { quotas } = self.text.read(Spanned::new(span.clone(), one))?;
        let ConfiguredQuotas { zone, holidays, scopes } = &mut self.found;
        if let Some(problem) = problems("quotas", &quotas, *zone, holidays).into_iter().next() {
            let of = problem.strip_prefix("`quotas[").and_then(|rest| rest.split_once(']'));
            let at = of.and_then(|(at, rest)| Some((at.parse::<usize>().ok()?, rest.starts_with(".window"))));
            let place = at.and_then(|(at, window)| {
                let (whole, its_window) = places.get(at)?;
                Some(if window { its_window.clone().unwrap_or_else(|| whole.clone()) } else { whole.clone() })
            });
            return Err(self.text.wrong(place.or(Some(span)), problem));
        }
        if !quotas.is_empty() {
            scopes.push((scope, quotas));
        }
        Ok(())
    }

    /// Takes `[[host]]` and `[[datastore]]`; `sources` are those that there are.
    pub(super) fn places(
        &mut self,
        document: &mut DeTable,
        sources: &BTreeSet<String>,
    ) -> Result<(), TextError> {
        for (sort, scope) in
            [("host", QuotaScope::Host as fn(String) -> QuotaScope), ("datastore", QuotaScope::Datastore)]
        {
            let Some(value) = document.remove(sort) else { continue };
            let not_a_list = || format!("`{sort}` is written as `[[{sort}]]`, once for each");
            let span = value.span();
            let DeValue::Array(array) = value.into_inner() else {
                return Err(self.text.wrong(Some(span), not_a_list()));
            };
            let mut names = BTreeSet::new();
            for value in array {
                let span = value.span();
                let DeValue::Table(mut table) = value.into_inner() else {
                    return Err(self.text.wrong(Some(span), not_a_list()));
                };
                let quotas = table.remove_entry("quotas");
                let QuotaEndpoint { name, source } = self.text.read(Spanned::new(span.clone(), table))?;
                let place = name.span();
                let mut name = name.into_inner();
                // Datastores of directories are known without it.
                name.truncate(name.trim_end_matches('/').len().max(1));
                if name.is_empty() || name.len() > LONGEST || name.contains(char::is_control) {
                    let told = format!("the name {name:?} cannot be that of a {sort}");
                    return Err(self.text.wrong(Some(place), told));
                }
                if let Some(unknown) = source.as_ref().filter(|source| !sources.contains(source.get_ref())) {
                    let told = format!("there is no source {:?} in this file", unknown.get_ref());
                    return Err(self.text.wrong(Some(unknown.span()), told));
                }
                let name =
                    quota_endpoint_name(source.as_ref().map(|source| source.get_ref().as_str()), &name);
                if !names.insert(name.clone()) {
                    let told = format!("there is another {sort} {name:?}: put its quotas into one");
                    return Err(self.text.wrong(Some(place), told));
                }
                let none =
                    |value: &Spanned<DeValue>| value.get_ref().as_array().is_some_and(|list| list.is_empty());
                let Some((key, value)) = quotas.filter(|(_, value)| !none(value)) else {
                    return Err(self
                        .text
                        .wrong(Some(span), format!("it has no quotas: add `[[{sort}.quotas]]`")));
                };
                let mut quotas = DeTable::new();
                quotas.insert(key, value);
                self.take(&mut quotas, scope(name))?;
            }
        }
        Ok(())
    }

    /// All quotas of the file.
    pub(super) fn end(self) -> ConfiguredQuotas {
        self.found
    }
}

#[derive(Deserialize)]
struct List {
    quotas: Vec<Quota>,
}

/// The position of each quota of the list, and its window.
fn places(value: &Spanned<DeValue>) -> Vec<(Range<usize>, Option<Range<usize>>)> {
    let DeValue::Array(array) = value.get_ref() else { return Vec::new() };
    let place = |value: &Spanned<DeValue>| {
        let window = value.get_ref().as_table().and_then(|table| table.get("window"));
        (value.span(), window.map(Spanned::span))
    };
    array.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::{super::Config, *};

    const GOOD: &str = r#"zone = "Europe/Berlin"
holidays = ["12-25"]

[[quotas]]
passes = 20

[[quotas]]
window = "Mon-Fri except holidays 08:00–18:00"
bytes_per_second = "200MiB"
passes = 4

[[source]]
name = "lab"
kind = "libvirt"

[[source.quotas]]
snapshots = 8

[[target]]
name = "new"
kind = "disk"
directory = "/pool"
quotas = [{ bytes_per_second = "1GiB" }]

[[host]]
name = "kvm1"

[[host.quotas]]
disks = 6

[[datastore]]
source = "lab"
name = "/srv/images/"
quotas = [{ snapshots = 2 }]
"#;

    fn read(text: &str) -> Result<ConfiguredQuotas, String> {
        Config::parse(text, "warmd.toml").map(|config| config.quotas).map_err(|error| error.to_string())
    }

    #[test]
    fn quotas_of_every_scope_are_read() {
        let quotas = read(GOOD).unwrap();
        let of = |path: &str| &quotas.scopes.iter().find(|(scope, _)| scope.path() == path).unwrap().1;
        assert_eq!((quotas.scopes.len(), quotas.zone), (5, Some(Tz::Europe__Berlin)));
        assert_eq!((of("global").len(), of("global")[1].passes), (2, NonZeroU32::new(4)));
        assert_eq!(of("source/lab")[0].snapshots, NonZeroU32::new(8));
        assert_eq!(of("target/new")[0].bytes_per_second, NonZeroU64::new(1 << 30));
        assert_eq!(of("host/kvm1")[0].disks, NonZeroU32::new(6));
        assert_eq!(of("datastore/lab:/srv/images")[0].snapshots, NonZeroU32::new(2));
        assert_eq!(read("").unwrap(), ConfiguredQuotas::default());
    }

    #[test]
    fn every_mistake_has_its_place() {
        for (old, new, wanted) in [
            ("passes = 20", "passes = 0", "warmd.toml:5:10: invalid value: integer `0`"),
            ("passes = 20", "pass = 20", "warmd.toml:5:1: unknown key `pass`"),
            ("passes = 20", "", "warmd.toml:4:1: `quotas[0]` limits nothing"),
            ("zone = \"Europe/Berlin\"", "", "warmd.toml:8:10: `quotas[1].window` is \"Mon-Fri except"),
            ("\"Europe/Berlin\"", "\"Europa/Berlin\"", "warmd.toml:1:8: \"Europa/Berlin\" is not"),
            ("holidays = [\"12-25\"]", "", "warmd.toml:8:10: `quotas[1].window` speaks of holidays"),
            ("\"200MiB\"", "\"1KiB\"", "warmd.toml:9:20: \"1KiB\" is not bytes per second"),
            ("08:00–18:00", "08:00", "warmd.toml:8:10: "),
            ("[{ bytes_per_second = \"1GiB\" }]", "7", "warmd.toml:23:10: `quotas` is a list"),
            ("\"kvm1\"", "\"\"", "warmd.toml:26:8: the name \"\" cannot be that of a host"),
            ("name = \"kvm1\"", "", "warmd.toml:25:1: missing key `name`"),
            ("name = \"kvm1\"", "nam = \"kvm1\"", "warmd.toml:26:1: unknown key `nam`"),
            ("[[host.quotas]]\ndisks = 6", "", "warmd.toml:25:1: it has no quotas: add `[[host.quotas]]`"),
            (
                "quotas = [{ snapshots = 2 }]",
                "quotas = []",
                "warmd.toml:31:1: it has no quotas: add `[[datas",
            ),
            ("source = \"lab\"", "source = \"lap\"", "warmd.toml:32:10: there is no source \"lap\""),
            ("[[host]]", "[host]", "warmd.toml:25:1: "),
            ("\"/srv/images/\"\n", "\"/srv\"\nspeed = 1\n", "warmd.toml:34:1: unknown key `speed`"),
            (
                "quotas = [{ snapshots = 2 }]\n",
                "quotas = [{ snapshots = 2 }]\n[[datastore]]\nname = \"lab:/srv/images\"\n",
                "warmd.toml:36:8: there is another datastore \"lab:/srv/images\"",
            ),
        ] {
            assert!(GOOD.contains(old), "{old}");
            let message = read(&GOOD.replacen(old, new, 1)).unwrap_err();
            assert!(message.starts_with(wanted), "{old} → {new}:\n {message}\n {wanted}");
        }
    }
}
