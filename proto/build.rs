//! Compiles the `.proto` files with protox (no protoc on the machine) and keeps the descriptor set for
//! reflection.
//!
//! The control API's messages also get their JSON form (`src/json.rs`): which fields need help is read off
//! the descriptors, so that a new field cannot be forgotten.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};

const FILES: [&str; 3] =
    ["warmd/v1/warmd.proto", "warmd/provisioner/v1/provisioner.proto", "warmd/hooks/v1/hooks.proto"];
const CONTROL: &str = "warmd.v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(&out, descriptors.encode_to_vec())?;

    let mut builder = tonic_prost_build::configure()
        .type_attribute(format!(".{CONTROL}"), "#[derive(serde::Serialize)]")
        .enum_attribute(format!(".{CONTROL}"), "#[serde(rename_all = \"kebab-case\")]");
    for file in descriptors.file.iter().filter(|file| file.package() == CONTROL) {
        for message in &file.message_type {
            for field in &message.field {
                if field.r#type() == Type::Enum && field.label() == Label::Repeated {
                    return Err(
                        format!("{}: src/json.rs has no form for a list of enums", field.name()).into()
                    );
                }
                let with = match (field.r#type(), field.type_name()) {
                    (Type::Enum, name) => {
                        let name = name.rsplit('.').next().unwrap_or(name);
                        format!("crate::json::kebab::<crate::v1::{name}, _>")
                    }
                    (_, ".google.protobuf.Timestamp" | ".google.protobuf.Duration") => {
                        "crate::json::text".to_owned()
                    }
                    _ => continue,
                };
                builder = builder.field_attribute(
                    format!(".{CONTROL}.{}.{}", message.name(), field.name()),
                    format!("#[serde(serialize_with = \"{with}\")]"),
                );
            }
        }
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
