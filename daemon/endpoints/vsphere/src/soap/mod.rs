//! SOAP as the vSphere web services speak it: requests with their children in order, answers as trees of
//! elements, faults by their type.
//!
//! Rule: nothing here knows a method or an object. An answer is bounded before it is read, and what is
//! missing in it is said by name, never assumed.

mod element;
mod envelope;
mod fault;
mod moref;

pub(crate) use element::MAX_BYTES;
pub use element::{Element, SoapXmlError};
pub use envelope::{Node, SoapRequest};
pub use fault::{Fault, FaultKind};
pub use moref::MoRef;

use thiserror::Error;

/// What an HTTP answer's body was.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The method's response element.
    Response(Element),
    Fault(Fault),
}

/// Why a body is no answer.
#[derive(Debug, Error)]
pub enum BodyError {
    #[error("the answer is no XML that is understood: {0}")]
    Xml(#[from] SoapXmlError),
    #[error("the answer is no SOAP envelope: its root is <{0}>")]
    NoEnvelope(String),
    #[error("the answer holds <{found}> where <{wanted}> was expected")]
    OtherMethod { found: String, wanted: String },
    #[error("the answer's body is empty")]
    Empty,
}

/// Reads the answer to `method`.
pub(crate) fn read_answer(body: &[u8], method: &str) -> Result<Answer, BodyError> {
    let root = Element::read(body)?;
    if root.name != "Envelope" {
        return Err(BodyError::NoEnvelope(root.name));
    }
    let mut inner = root.into_child("Body").and_then(Element::into_first_child).ok_or(BodyError::Empty)?;
    if inner.name == "Fault" {
        return Ok(Answer::Fault(Fault::read(&inner)));
    }
    let wanted = format!("{method}Response");
    if inner.name != wanted {
        return Err(BodyError::OtherMethod { found: std::mem::take(&mut inner.name), wanted });
    }
    Ok(Answer::Response(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_a_fault_and_from_nonsense() {
        let answer = |body: &str| {
            let text = format!(
                "<soapenv:Envelope xmlns:soapenv='http://schemas.xmlsoap.org/soap/envelope/'>\
                 <soapenv:Header/><soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>"
            );
            read_answer(text.as_bytes(), "PowerOnVM_Task")
        };
        let good = answer(
            "<PowerOnVM_TaskResponse xmlns='urn:vim25'><returnval type='Task'>task-7</returnval></PowerOnVM_TaskResponse>",
        );
        let Ok(Answer::Response(response)) = good else { panic!("{good:?}") };
        assert_eq!(response.child("returnval").and_then(Element::moref).unwrap().id, "task-7");
        assert!(matches!(
            answer("<soapenv:Fault><faultstring>x</faultstring></soapenv:Fault>"),
            Ok(Answer::Fault(_))
        ));
        assert!(matches!(answer("<LogoutResponse/>"), Err(BodyError::OtherMethod { .. })));
        assert!(matches!(answer(""), Err(BodyError::Empty)));
        assert!(matches!(
            read_answer(b"<html><body>503 Service Unavailable</body></html>", "Login"),
            Err(BodyError::NoEnvelope(name)) if name == "html"
        ));
        assert!(matches!(read_answer(b"no server", "Login"), Err(BodyError::Xml(_))));
    }
}
