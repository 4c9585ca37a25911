//! JSON as two readers see it: equal if it says the same, and never with two answers to one question.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// A value without any name twice in one object: readers differ in which one they take.
pub(super) struct Unambiguous(pub(super) Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Once.deserialize(deserializer).map(Self)
    }
}

struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Value, E> {
        Ok(Value::Bool(is))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Once)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Once)?;
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} is there twice in one object")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// Where the two first say something different, as a path such as `/disks/0/size`; `None` if they say the
/// same.
///
/// The order of names does not count, nor whether a number is written as 1 or 1.0.
pub(super) fn difference(one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let only_one = one
                .keys()
                .chain(other.keys())
                .find(|name| !(one.contains_key(*name) && other.contains_key(*name)));
            if let Some(name) = only_one {
                return Some(format!("/{name}"));
            }
            one.iter()
                .find_map(|(name, value)| Some(format!("/{name}{}", difference(value, other.get(name)?)?)))
        }
        (Value::Array(one), Value::Array(other)) => {
            let found = one
                .iter()
                .zip(other)
                .enumerate()
                .find_map(|(at, (one, other))| Some(format!("/{at}{}", difference(one, other)?)));
            found.or_else(|| (one.len() != other.len()).then(|| format!("/{}", one.len().min(other.len()))))
        }
        (Value::Number(one), Value::Number(other)) => (!same(one, other)).then(String::new),
        _ => (one != other).then(String::new),
    }
}

fn same(one: &Number, other: &Number) -> bool {
    // Integers above 2⁵³ are not the doubles that they look like.
    let exact = |number: &Number| number.as_i128().is_none_or(|integer| integer.abs() <= 1 << 53);
    one == other || (exact(one) && exact(other) && one.as_f64() == other.as_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        serde_json::from_str::<Unambiguous>(text).map(|found| found.0).map_err(|error| error.to_string())
    }

    #[test]
    fn it_reads_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u001b"],"b":{"c":18446744073709551615}}"#;
        assert_eq!(read(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        for twice in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            assert!(read(twice).unwrap_err().contains("twice"), "{twice}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn differences_are_found_and_named() {
        let report = json!({"disks": [{"size": 1, "root": "ab"}], "downtime": 2.0});
        let other = |text: &str| difference(&report, &read(text).unwrap());
        assert_eq!(other(r#"{"downtime":2,"disks":[{"root":"ab","size":1.0}]}"#), None);
        for (text, at) in [
            (r#"{"downtime":2,"disks":[{"root":"ab","size":2}]}"#, "/disks/0/size"),
            (r#"{"downtime":2,"disks":[{"root":"ab"}]}"#, "/disks/0/size"),
            (r#"{"downtime":2,"disks":[{"root":"ab","size":1,"x":null}]}"#, "/disks/0/x"),
            (r#"{"downtime":2,"disks":[{"root":"ab","size":1},1]}"#, "/disks/1"),
            (r#"{"downtime":2,"disks":[]}"#, "/disks/0"),
            (r#"{"downtime":"2","disks":[{"root":"ab","size":1}]}"#, "/downtime"),
            ("[]", ""),
        ] {
            assert_eq!(other(text).as_deref(), Some(at), "{text}");
        }
        let big = json!(9_007_199_254_740_993_u64);
        assert!(difference(&big, &json!(9_007_199_254_740_992_u64)).is_some());
        assert!(difference(&big, &json!(9_007_199_254_740_992.0)).is_some());
    }
}
