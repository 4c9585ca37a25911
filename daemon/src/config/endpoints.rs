//! `[[source]]` and `[[target]]`: a name, a kind, and what that kind needs.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    name,
    text::{Text, TextError},
};

/// Takes the endpoints of one sort out of the document.
pub(super) fn take<T: DeserializeOwned>(
    text: Text,
    document: &mut DeTable,
    sort: &str,
) -> Result<BTreeMap<String, T>, TextError> {
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
        let settings = text.read_buffered(&table)?;
        if endpoints.insert(name.clone(), settings).is_some() {
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
