//! A signed report's form, and how it is checked.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::Signature;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    hex,
    json::{Unambiguous, difference},
    key::{PublicKey, ReportKey},
};

/// The prefix of the payload in the signed bytes: the key cannot be tricked into signing another message.
const DOMAIN: &[u8] = b"warmd report 1\n";
const ALGORITHM: &str = "Ed25519";
const FIELD: &str = "signature";

/// A report with its signature.
#[derive(Clone, Debug)]
pub struct SignedJson {
    /// The readable report, with the signature as its last field.
    pub json: String,
    /// BLAKE3 of the payload, in hexadecimal: by this other documents name the report.
    pub digest: String,
    pub key: PublicKey,
}

/// The field `signature` of a signed report.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureField {
    form: u32,
    algorithm: String,
    /// In hexadecimal, as the two below.
    key: String,
    digest: String,
    signature: String,
    /// What is signed: the report without `signature`, as JSON, in base64.
    payload: String,
}

#[derive(Serialize)]
struct SignedForm<'a, R> {
    #[serde(flatten)]
    report: &'a R,
    signature: SignatureField,
}

/// A report whose signature fits.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What was signed.
    pub report: Value,
    pub digest: String,
    /// The key that signed it. The caller must know whether it is the right one.
    pub key: PublicKey,
}

/// Why a report is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    #[error("this is no report of warmd: {0}")]
    NotAReport(String),
    #[error("the report is not signed: its signature was removed, or an older warmd made it")]
    NotSigned,
    #[error("the signature is of form {0}, which this version does not know")]
    Form(u32),
    #[error("the signature is damaged: {0}")]
    Damaged(&'static str),
    #[error("the signature does not fit: what was signed was changed, or the signature or the key was")]
    Signature,
    #[error("the report was changed after it was signed: what can be read at {} is not what was signed", JsonPath(.0))]
    Changed(String),
    #[error("it is signed by another key: {0}")]
    OtherKey(Box<PublicKey>),
}

struct JsonPath<'a>(&'a str);

impl fmt::Display for JsonPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { self.0 })
    }
}

/// Signs a report; it must become a JSON object.
pub fn sign(key: &ReportKey, report: &impl Serialize) -> Result<SignedJson, serde_json::Error> {
    let payload = serde_json::to_string(report)?;
    let digest = blake3::hash(payload.as_bytes()).to_hex().to_string();
    let bytes = key.sign(&message(payload.as_bytes()));
    let signature = SignatureField {
        form: 1,
        algorithm: ALGORITHM.to_owned(),
        key: key.public().to_string(),
        digest: digest.clone(),
        signature: hex::encode(&bytes.to_bytes()),
        payload: STANDARD.encode(&payload),
    };
    let json = serde_json::to_string_pretty(&SignedForm { report, signature })?;
    Ok(SignedJson { json, digest, key: key.public() })
}

/// Checks a signed report, and against `key` if one is given.
pub fn verify(text: &str, key: Option<PublicKey>) -> Result<Verified, InvalidSignature> {
    let not_json = |error: serde_json::Error| InvalidSignature::NotAReport(error.to_string());
    let Unambiguous(mut readable) = serde_json::from_str(text).map_err(not_json)?;
    let Some(fields) = readable.as_object_mut() else {
        return Err(InvalidSignature::NotAReport("it is no JSON object".to_owned()));
    };
    let field = fields.remove(FIELD).ok_or(InvalidSignature::NotSigned)?;
    if let Some(form) = field.get("form").and_then(Value::as_u64).filter(|form| *form != 1) {
        return Err(InvalidSignature::Form(u32::try_from(form).unwrap_or(u32::MAX)));
    }
    let field: SignatureField = serde_json::from_value(field)
        .map_err(|_| InvalidSignature::Damaged("fields are missing or strange"))?;
    if field.algorithm != ALGORITHM {
        return Err(InvalidSignature::Damaged("the algorithm is not Ed25519"));
    }
    let signer = PublicKey::from_hex(&field.key).ok_or(InvalidSignature::Damaged("the key is none"))?;
    let payload =
        STANDARD.decode(&field.payload).map_err(|_| InvalidSignature::Damaged("the payload is no base64"))?;
    let signature =
        hex::decode(&field.signature).ok_or(InvalidSignature::Damaged("the signature is none"))?;
    let signature = Signature::from_bytes(&signature);
    signer.0.verify_strict(&message(&payload), &signature).map_err(|_| InvalidSignature::Signature)?;
    let digest = blake3::hash(&payload).to_hex().to_string();
    if digest != field.digest {
        return Err(InvalidSignature::Damaged("the digest is not the payload's"));
    }
    let Unambiguous(report) = serde_json::from_slice(&payload).map_err(not_json)?;
    if let Some(place) = difference(&readable, &report) {
        return Err(InvalidSignature::Changed(place));
    }
    match key {
        Some(key) if key != signer => Err(InvalidSignature::OtherKey(Box::new(signer))),
        _ => Ok(Verified { report, digest, key: signer }),
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    [DOMAIN, payload].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> (ReportKey, SignedJson) {
        let key = ReportKey::from_secret(&[7; 32]);
        let report = json!({"format": 2, "vm_name": "web \u{1b}[31m ü", "disks": [{"size": 65536, "root": "ab"}], "downtime": 14.25, "none": null});
        let signed = sign(&key, &report).unwrap();
        (key, signed)
    }

    #[test]
    fn a_report_verifies_also_when_it_was_printed_otherwise() {
        let (key, signed) = sample();
        let verified = verify(&signed.json, Some(key.public())).unwrap();
        assert_eq!((verified.key, &verified.digest), (key.public(), &signed.digest));
        assert_eq!(verified.report["downtime"], 14.25);
        let value: Value = serde_json::from_str(&signed.json).unwrap();
        verify(&value.to_string(), None).unwrap();
        let other = ReportKey::from_secret(&[8; 32]).public();
        let error = verify(&signed.json, Some(other)).unwrap_err();
        assert_eq!(error, InvalidSignature::OtherKey(Box::new(key.public())));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (key, signed) = sample();
        let text = &signed.json;
        let mut harmless = 0;
        for (at, was) in text.char_indices() {
            for put in ['0', 'x', ' ', '"'] {
                if put == was {
                    continue;
                }
                let changed = format!("{}{put}{}", &text[..at], &text[at + was.len_utf8()..]);
                if let Ok(verified) = verify(&changed, Some(key.public())) {
                    // White space between values has no meaning.
                    assert!(was.is_whitespace() && put == ' ', "{was:?} became {put:?} at {at}:\n{changed}");
                    assert_eq!(verified.digest, signed.digest);
                    harmless += 1;
                }
            }
        }
        assert!(harmless < text.matches(char::is_whitespace).count());
    }

    #[test]
    fn each_way_to_break_it_has_its_own_error() {
        let (_, signed) = sample();
        let value: Value = serde_json::from_str(&signed.json).unwrap();
        let with = |change: &dyn Fn(&mut Value)| {
            let mut value = value.clone();
            change(&mut value);
            verify(&value.to_string(), None).unwrap_err()
        };
        let other = sign(&ReportKey::from_secret(&[8; 32]), &json!({"a": 1})).unwrap();
        let other: Value = serde_json::from_str(&other.json).unwrap();
        assert_eq!(
            with(&|v| v["disks"][0]["size"] = json!(1)),
            InvalidSignature::Changed("/disks/0/size".to_owned())
        );
        assert_eq!(with(&|v| v["more"] = json!(1)), InvalidSignature::Changed("/more".to_owned()));
        assert_eq!(
            with(&|v| drop(v.as_object_mut().unwrap().remove("none"))),
            InvalidSignature::Changed("/none".to_owned())
        );
        assert_eq!(
            with(&|v| v["signature"]["payload"] = other["signature"]["payload"].clone()),
            InvalidSignature::Signature
        );
        assert_eq!(
            with(&|v| v["signature"]["key"] = other["signature"]["key"].clone()),
            InvalidSignature::Signature
        );
        assert_eq!(with(&|v| v["signature"]["form"] = json!(2)), InvalidSignature::Form(2));
        assert!(matches!(
            with(&|v| v["signature"] = other["signature"].clone()),
            InvalidSignature::Changed(_)
        ));
        assert_eq!(
            with(&|v| drop(v.as_object_mut().unwrap().remove("signature"))),
            InvalidSignature::NotSigned
        );
        for field in ["algorithm", "key", "digest", "signature", "payload"] {
            let error = with(&|v| v["signature"][field] = json!("00"));
            assert!(
                matches!(error, InvalidSignature::Damaged(_) | InvalidSignature::Signature),
                "{field}: {error}"
            );
        }
        // Another spelling of the same bytes: a report has one form.
        for field in ["key", "digest", "signature"] {
            let shouted = value["signature"][field].as_str().unwrap().to_ascii_uppercase();
            let error = with(&|v| v["signature"][field] = json!(shouted));
            assert!(matches!(error, InvalidSignature::Damaged(_)), "{field}: {error}");
        }
        let twice = signed.json.replacen("\"format\": 2", "\"format\": 9, \"format\": 2", 1);
        assert!(matches!(verify(&twice, None), Err(InvalidSignature::NotAReport(_))));
        for text in ["", "[]", "7", "{}", "{\"signature\":{}}"] {
            assert!(verify(text, None).is_err(), "{text}");
        }
    }
}
