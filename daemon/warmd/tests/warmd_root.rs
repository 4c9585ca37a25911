//! `warmd` itself, as a program.
#![allow(clippy::unwrap_used, reason = "how a test fails")]

#[test]
fn a_root_that_nobody_reads_is_a_failure_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [7; 1000]).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let ran = command.arg("root").arg(&path).stdout(writer).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot print") && !told.contains("panicked"), "{told}");
}
