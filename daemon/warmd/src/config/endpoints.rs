//! `[[source]]` and `[[target]]`: a name, limits, quotas, a kind, and what that kind needs.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use warmd_core::{
    model::limit::LimitTable,
    plan_file::text::{Text, TextError},
};
use warmd_schedules::admission_queue::QuotaScope;

use super::{name, quotas::QuotaReader};

/// An endpoint's settings, and those that every kind has.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointConfig<S> {
    pub settings: S,
    pub limits: LimitTable,
}

/// Takes the endpoints of one sort out of the document.
pub(super) fn take<T: DeserializeOwned>(
    text: Text,
    document: &mut DeTable,
    (sort, scope): (&str, fn(String) -> QuotaScope),
    quotas: &mut QuotaReader,
) -> Result<BTreeMap<String, EndpointConfig<T>>, TextError> {
    let mut endpoints = BTreeMap::new();
    let Some(value) = document.get_mut(sort) else { return Ok(endpoints) };
    let not_a_list = || format!("`{sort}` is written as `[[{sort}]]`, once for each");
    let span = value.span();
    let DeValue::Array(array) = std::mem::replace(value.get_mut(), DeValue::Array(DeArray::default())) else {
        return Err(text.wrong(Some(span), not_a_list()));
    };
    for value in array {
        let span = value.span();
        let DeValue::Table(table) = value.into_inner() else {
            return Err(text.wrong(Some(span), not_a_list()));
        };
        let mut table = Spanned::new(span, table);
        let (name, place) = take_name(text, &mut table)?;
        let limits = take_limits(text, &mut table)?;
        quotas.take(table.get_mut(), scope(name.clone()))?;
        let settings = text.read_buffered(&table)?;
        if endpoints.insert(name.clone(), EndpointConfig { settings, limits }).is_some() {
            return Err(text.wrong(Some(place), format!("there is another {sort} {name:?}: rename one")));
        }
    }
    Ok(endpoints)
}

fn take_name(
    text: Text,
    table: &mut Spanned<DeTable>,
) -> Result<(String, std::ops::Range<usize>), TextError> {
    let span = table.span();
    let Some(value) = table.get_mut().remove("name") else {
        return Err(text.wrong(Some(span), "missing key `name`"));
    };
    let place = value.span();
    let DeValue::String(name) = value.into_inner() else {
        return Err(text.wrong(Some(place), "`name` is a text in quotes"));
    };
    match name::problem(&name) {
        Some(problem) => Err(text.wrong(Some(place), problem)),
        None => Ok((name.into_owned(), place)),
    }
}

fn take_limits(text: Text, table: &mut Spanned<DeTable>) -> Result<LimitTable, TextError> {
    let Some(value) = table.get_mut().remove("limits") else { return Ok(LimitTable::default()) };
    let place = value.span();
    let DeValue::Table(limits) = value.into_inner() else {
        let told = "`limits` is a table: { rate = \"200MiB/s\", requests = 64 }";
        return Err(text.wrong(Some(place), told));
    };
    text.read(Spanned::new(place, limits))
}
