//! The position of a mistake in a table, when the error does not name it.
//!
//! serde buffers the fields beside a `kind`, so its errors there have no position. The position is found by
//! parsing the table again with one change at a time; configurations are small.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Parses a changed table and returns the error's message, if there is one.
type Attempt<'a> = dyn Fn(DeTable) -> Option<String> + 'a;

/// The position of the key or value that `message` is about, if it can be found. `span` is the table's own
/// position.
pub(super) fn find(
    table: &DeTable,
    span: Range<usize>,
    message: &str,
    attempt: &Attempt,
) -> Option<Range<usize>> {
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return table_without(table, span, field, attempt);
    }
    if let Some(place) = key_in_the_way(table, message, attempt) {
        return Some(place);
    }
    let kind = table.get("kind").filter(|_| message.starts_with("unknown variant"));
    kind.map(Spanned::span)
}

/// The key whose removal changes the message.
fn key_in_the_way(table: &DeTable, message: &str, attempt: &Attempt) -> Option<Range<usize>> {
    for (key, value) in table {
        let mut without = table.clone();
        without.remove(&**key.get_ref());
        let now = attempt(without);
        // Without its kind the table cannot be parsed: that does not show that the kind is wrong.
        if now.as_deref().is_some_and(|now| now == message || now == "missing field `kind`") {
            continue;
        }
        if let DeValue::Table(inner) = value.get_ref() {
            let within = |inner: DeTable| attempt(with(table, key, value, inner));
            if let Some(place) = key_in_the_way(inner, message, &within) {
                return Some(place);
            }
        }
        return Some(if message.starts_with("unknown field") { key.span() } else { value.span() });
    }
    None
}

/// The table in which `field` is missing: with the field added, the table neither lacks the field nor calls
/// it unknown. Outer tables are tried before inner ones.
fn table_without(
    table: &DeTable,
    span: Range<usize>,
    field: &str,
    attempt: &Attempt,
) -> Option<Range<usize>> {
    let mut complete = table.clone();
    let empty = DeValue::String("".into());
    complete.insert(Spanned::new(0..0, field.to_owned().into()), Spanned::new(0..0, empty));
    let complaints = ["missing", "unknown"].map(|what| format!("{what} field `{field}`"));
    let is_still_wrong =
        attempt(complete).is_some_and(|now| complaints.iter().any(|start| now.starts_with(start)));
    if !is_still_wrong {
        return Some(span);
    }
    table.iter().find_map(|(key, value)| {
        let inner = value.get_ref().as_table()?;
        table_without(inner, value.span(), field, &|inner| attempt(with(table, key, value, inner)))
    })
}

/// `table` with `inner` in place of `value`.
fn with<'a>(
    table: &DeTable<'a>,
    key: &Spanned<std::borrow::Cow<'a, str>>,
    value: &Spanned<DeValue<'a>>,
    inner: DeTable<'a>,
) -> DeTable<'a> {
    let mut outer = table.clone();
    outer.insert(key.clone(), Spanned::new(value.span(), DeValue::Table(inner)));
    outer
}
