//! Compiles `bpf/*.c` with clang, embeds the objects, and turns what `bpf/abi.h` lists once
//! (constants and drop reasons) into Rust. Protobuf definitions are compiled without protoc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=CLANG");
    let abi = fs::read_to_string(root.join("bpf/abi.h")).expect("bpf/abi.h");
    fs::write(out.join("abi_constants.rs"), abi_constants(&abi)).expect("write abi_constants.rs");
    fs::write(out.join("drop_reasons.rs"), drop_reasons(&abi)).expect("write drop_reasons.rs");
    compile_bpf(&root.join("bpf"), &out);
    compile_protos(&root.join("proto"), &out);
    version(&root);
}

/// `#define SLUICE_NAME value` lines become `pub const NAME: u32`.
fn abi_constants(abi: &str) -> String {
    let mut text = String::new();
    for line in abi.lines() {
        let Some(rest) = line.strip_prefix("#define SLUICE_") else { continue };
        let mut words = rest.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let value = value.trim_end_matches('u');
        let number = match value.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => value.parse(),
        };
        if let Ok(number) = number {
            text.push_str(&format!(
                "/// `SLUICE_{name}` of `bpf/abi.h`.\npub const {name}: u32 = {number:#x};\n"
            ));
        }
    }
    text
}

/// The `X(number, NAME, "text")` lines become an enum with number, text and parser.
fn drop_reasons(abi: &str) -> String {
    let reasons: Vec<(u8, String, String)> = abi
        .lines()
        .filter_map(|line| {
            let inner = line.trim().strip_prefix("X(")?;
            let (number, rest) = inner.split_once(',')?;
            let (name, rest) = rest.split_once(',')?;
            let text = rest.split('"').nth(1)?;
            Some((number.trim().parse().ok()?, name.trim().to_owned(), text.to_owned()))
        })
        .collect();
    assert!(reasons.len() > 20, "bpf/abi.h: the drop reason list was not understood");
    let camel = |name: &str| -> String {
        name.split('_').map(|word| word[..1].to_owned() + &word[1..].to_lowercase()).collect()
    };
    let mut text = String::from(
        "/// Why a packet was dropped. Generated from the list in `bpf/abi.h`.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n#[repr(u8)]\npub enum DropReason {\n",
    );
    for (number, name, label) in &reasons {
        text.push_str(&format!("    /// {label}.\n    {} = {number},\n", camel(name)));
    }
    text.push_str("}\n\nimpl DropReason {\n    /// Every reason, in numeric order of the list.\n    pub const ALL: &'static [DropReason] = &[\n");
    for (_, name, _) in &reasons {
        text.push_str(&format!("        DropReason::{},\n", camel(name)));
    }
    text.push_str("    ];\n\n    /// The sentence that people read.\n    pub fn text(self) -> &'static str {\n        match self {\n");
    for (_, name, label) in &reasons {
        text.push_str(&format!("            DropReason::{} => {label:?},\n", camel(name)));
    }
    text.push_str("        }\n    }\n\n    /// The stable upper-case name (Hubble's `drop_reason_desc`).\n    pub fn name(self) -> &'static str {\n        match self {\n");
    for (_, name, _) in &reasons {
        text.push_str(&format!("            DropReason::{} => {name:?},\n", camel(name)));
    }
    text.push_str("        }\n    }\n}\n");
    text
}

fn clang() -> String {
    let candidates = env::var("CLANG").into_iter().chain(
        ["clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"].map(str::to_owned),
    );
    for candidate in candidates {
        if Command::new(&candidate).arg("--version").output().is_ok_and(|o| o.status.success()) {
            return candidate;
        }
    }
    panic!("no clang found: install clang (Debian: apt-get install clang libbpf-dev) or set CLANG");
}

fn compile_bpf(dir: &Path, out: &Path) {
    let mut sources: Vec<PathBuf> = fs::read_dir(dir)
        .expect("bpf/")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "c"))
        .collect();
    sources.sort();
    if sources.is_empty() {
        return;
    }
    let clang = clang();
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let multiarch = format!("/usr/include/{arch}-linux-gnu");
    for source in sources {
        let object = out.join(source.file_stem().expect("file name")).with_extension("bpf.o");
        let output = Command::new(&clang)
            .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"])
            .arg(format!("-D__TARGET_ARCH_{}", if arch == "x86_64" { "x86" } else { &arch }))
            .args(["-Wno-unused-parameter", "-Wno-sign-compare", "-Wno-address-of-packed-member"])
            .arg("-I")
            .arg(dir)
            .arg("-I")
            .arg(&multiarch)
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&object)
            .output()
            .expect("run clang");
        if !output.status.success() {
            panic!("{clang} failed on {}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn compile_protos(dir: &Path, out: &Path) {
    let mut protos: Vec<PathBuf> = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "proto") {
                protos.push(path);
            }
        }
    }
    protos.sort();
    if protos.is_empty() {
        return;
    }
    let descriptors = protox::compile(&protos, [dir]).expect("compile proto/");
    // Reflection of the flow API shows what every observer serves: not the cluster's own API, nor what a relay asks.
    let mut observer = descriptors.clone();
    observer.file.retain(|file| !["sluice.v1", "sluice.explain.v1"].contains(&file.package()));
    let encoded = prost::Message::encode_to_vec(&observer);
    fs::write(out.join("observer_descriptors.bin"), encoded).expect("write observer_descriptors.bin");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds(descriptors)
        .expect("generate gRPC code");
}

/// `--version` names the commit; a build outside git says so.
fn version(root: &Path) {
    println!("cargo:rerun-if-changed=.git/HEAD");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=SLUICE_COMMIT={commit}");
}
