//! Whether a machine's processor is available here. Pure, but for one query to libvirt.
//!
//! Rule: a refusal of libvirt at the start is known before the source is stopped. A processor that is the
//! host's own is another one on another host, and that is reported.

use warmd_core::model::{hardware::HardwareElement, machine::Machine, rule::Rule};

use super::{LibvirtTarget, xml::Element};
use crate::libvirt::{LibvirtError, LibvirtErrorKind, went_unanswered, xml as read};

/// The processors that the hypervisor supports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Processors {
    /// Modes, and whether it supports each.
    modes: Vec<(String, bool)>,
    /// Models of the mode `custom`; none if it does not list them.
    models: Vec<String>,
}

/// libvirt's answer on a processor that the definition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The host has all of it, or libvirt compares none of this architecture.
    Fits,
    /// It lacks features; libvirt's words.
    Lacks(String),
    /// libvirt could not compare, and could not at the start either; its words.
    Unknown(String),
    /// warmd may not ask it, but it still compares at the start; its words.
    Denied(String),
}

impl Processors {
    /// Reads libvirt's answer about machines of a kind.
    pub(super) fn read(root: roxmltree::Node<'_, '_>) -> Self {
        let Some(cpu) = read::child(root, "cpu") else { return Self::default() };
        let modes = read::children(cpu, "mode").filter_map(|mode| {
            Some((mode.attribute("name")?.to_owned(), mode.attribute("supported") == Some("yes")))
        });
        let custom = read::children(cpu, "mode").filter(|mode| mode.attribute("name") == Some("custom"));
        let models = custom.flat_map(|mode| read::children(mode, "model"));
        Self {
            modes: modes.collect(),
            models: models.filter_map(|model| model.text().map(str::to_owned)).collect(),
        }
    }

    fn lacks_mode(&self, mode: &str) -> bool {
        self.modes.iter().any(|(known, has)| known == mode && !has)
    }

    fn lacks_model(&self, model: &str) -> bool {
        !self.models.is_empty() && !self.models.iter().any(|known| known == model)
    }
}

impl LibvirtTarget {
    /// What is to be reported of the machine's processor, for a domain of its source's kind.
    pub(super) async fn judge_cpu(
        &self,
        machine: &Machine,
        kind: &str,
        family: &str,
        known: &Processors,
        is_same_host: bool,
    ) -> Result<Option<(Rule, String)>, LibvirtError> {
        let Some(cpu) = machine.hardware.as_ref().and_then(|hardware| hardware.part("cpu")) else {
            return Ok(None);
        };
        // On its own host it runs already.
        if is_same_host {
            return Ok(None);
        }
        let is_custom = mode(cpu) == CUSTOM && model(cpu).is_some();
        let compared = if is_custom {
            let text = Element::carried(cpu).to_string();
            match self.libvirt.cpu_lacks(kind, &machine.architecture, family, &text).await {
                Ok(None) => Compared::Fits,
                Ok(Some(what)) => Compared::Lacks(what),
                Err(error) if went_unanswered(&error) => return Err(error),
                Err(error) if error.kind == LibvirtErrorKind::Denied => {
                    Compared::Denied(error.cause.to_string())
                }
                Err(error) => Compared::Unknown(error.cause.to_string()),
            }
        } else {
            Compared::Fits
        };
        Ok(cpu_findings(cpu, kind, known, &compared))
    }
}

const CUSTOM: &str = "custom";

/// libvirt's default is the model that is named.
fn mode(cpu: &HardwareElement) -> &str {
    cpu.attribute("mode").unwrap_or(CUSTOM)
}

fn model(cpu: &HardwareElement) -> Option<&str> {
    cpu.part("model").map(|model| model.text.as_str()).filter(|model| !model.is_empty())
}

/// What is to be reported of a processor that comes from another host.
fn cpu_findings(
    cpu: &HardwareElement,
    kind: &str,
    known: &Processors,
    compared: &Compared,
) -> Option<(Rule, String)> {
    let mode = mode(cpu);
    if known.lacks_mode(mode) {
        return Some((
            Rule::HardwareUnmapped,
            format!("its processor is {mode}, which {kind} domains cannot be here"),
        ));
    }
    if matches!(mode, "host-passthrough" | "host-model" | "maximum") {
        let found = format!(
            "its processor is its host's own ({mode}), and on this host another one: programs and licences that look at it \
             may notice"
        );
        return Some((Rule::HardwareChanged, found));
    }
    let model = model(cpu).filter(|_| mode == CUSTOM)?;
    if known.lacks_model(model) {
        let may_differ = cpu.part("model").and_then(|model| model.attribute("fallback")) == Some("allow");
        return Some(if may_differ {
            (
                Rule::HardwareChanged,
                format!("its processor {model} is not known here: libvirt takes the nearest one"),
            )
        } else {
            (Rule::HardwareUnmapped, format!("its processor {model} is not known here"))
        });
    }
    // Emulated processors are not compared by default.
    let is_checked = match cpu.attribute("check") {
        None => kind == "kvm",
        Some(check) => check != "none",
    };
    match compared {
        Compared::Fits => None,
        Compared::Lacks(what) if is_checked => {
            Some((Rule::HardwareUnmapped, format!("its processor {model} cannot be had here: {what}")))
        }
        Compared::Lacks(what) => Some((
            Rule::HardwareChanged,
            format!("its processor {model} comes without some of its features: {what}"),
        )),
        // libvirt compares once more before it starts the domain, and fails in the same way.
        Compared::Unknown(why) if is_checked => Some((
            Rule::HardwareUnmapped,
            format!(
                "its processor {model} cannot be compared with this host's, and would not be started: {why}"
            ),
        )),
        Compared::Unknown(why) | Compared::Denied(why) => Some((
            Rule::HardwareChanged,
            format!("whether its processor {model} can be had here is not known: {why}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(attributes: &[(&str, &str)], model: Option<(&str, &str)>) -> HardwareElement {
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let model = model.map(|(text, fallback)| HardwareElement {
            name: "model".to_owned(),
            attributes: vec![of("fallback", fallback)],
            text: text.to_owned(),
            ..HardwareElement::default()
        });
        HardwareElement {
            name: "cpu".to_owned(),
            attributes: attributes.iter().map(|(name, value)| of(name, value)).collect(),
            parts: model.into_iter().collect(),
            ..HardwareElement::default()
        }
    }

    fn known() -> Processors {
        let text = "<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>\
            <mode name='host-model' supported='no'><model>Any</model></mode>\
            <mode name='custom' supported='yes'><model usable='no'>EPYC</model><model usable='yes'>qemu64</model></mode>\
            </cpu></domainCapabilities>";
        Processors::read(read::parse(text, "domainCapabilities").unwrap().root_element())
    }

    #[test]
    fn a_processor_that_cannot_be_had_stands_in_the_way() {
        let lacks = Compared::Lacks("it lacks avx".to_owned());
        let of = |cpu: &HardwareElement, kind: &str, compared: &Compared| {
            cpu_findings(cpu, kind, &known(), compared).map(|(rule, found)| {
                assert!(found.contains("processor"), "{found}");
                rule
            })
        };
        let named = |check: &[(&str, &str)]| cpu(check, Some(("EPYC", "forbid")));
        let (partial, none) =
            (named(&[("mode", "custom"), ("check", "partial")]), named(&[("check", "none")]));
        assert_eq!(of(&partial, "kvm", &Compared::Fits), None);
        assert_eq!(of(&partial, "qemu", &lacks), Some(Rule::HardwareUnmapped));
        assert_eq!(of(&none, "kvm", &lacks), Some(Rule::HardwareChanged), "libvirt starts it all the same");
        assert_eq!(of(&named(&[]), "kvm", &lacks), Some(Rule::HardwareUnmapped));
        assert_eq!(of(&named(&[]), "qemu", &lacks), Some(Rule::HardwareChanged));
        let doubt = Compared::Unknown("no answer".to_owned());
        assert_eq!(
            of(&partial, "kvm", &doubt),
            Some(Rule::HardwareUnmapped),
            "nor could the start compare it"
        );
        assert_eq!(of(&named(&[]), "kvm", &doubt), Some(Rule::HardwareUnmapped));
        assert_eq!(of(&none, "kvm", &doubt), Some(Rule::HardwareChanged), "the start does not compare it");
        let denied = Compared::Denied("not permitted".to_owned());
        assert_eq!(of(&partial, "kvm", &denied), Some(Rule::HardwareChanged));
        let unknown = |fallback| cpu(&[], Some(("Other", fallback)));
        assert_eq!(of(&unknown("forbid"), "kvm", &Compared::Fits), Some(Rule::HardwareUnmapped));
        assert_eq!(of(&unknown("allow"), "kvm", &Compared::Fits), Some(Rule::HardwareChanged));
    }

    #[test]
    fn host_cpu_is_reported_and_an_unknown_mode_refused() {
        let of = |mode: &str| {
            cpu_findings(&cpu(&[("mode", mode)], None), "kvm", &known(), &Compared::Fits)
                .map(|(rule, _)| rule)
        };
        assert_eq!(of("host-passthrough"), Some(Rule::HardwareChanged));
        assert_eq!(of("host-model"), Some(Rule::HardwareUnmapped));
        let model = cpu_findings(
            &cpu(&[("mode", "host-model")], None),
            "kvm",
            &Processors::default(),
            &Compared::Fits,
        );
        let (rule, found) = model.unwrap();
        assert!(rule == Rule::HardwareChanged && found.contains("host-model"), "{found}");
        assert_eq!(of("custom"), None, "only its topology is given");
        let unsaid = Processors::default();
        let named = cpu(&[], Some(("EPYC", "forbid")));
        assert_eq!(
            cpu_findings(&named, "kvm", &unsaid, &Compared::Fits),
            None,
            "what is not said is not held against it"
        );
    }
}
