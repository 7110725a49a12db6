//! The import rule of `ARCHITECTURE.md` as a test: scans the `use` lines and paths of every room.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and the other rooms of this crate that they may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("admission", &[]),
    ("identity", &["model"]),
    ("ipcache", &["model"]),
    ("fqdn", &["model", "policy"]),
    ("service", &["model"]),
    ("policy", &["model", "fqdn"]),
    ("flow", &["model", "policy"]),
    ("cluster", PURE),
    ("store", PURE),
    ("server", PURE_AND_STORE),
    ("k8s", PURE),
    ("datapath", PURE),
    ("endpoint", PURE),
    ("dnsproxy", PURE),
    ("httpproxy", PURE),
    ("cni", PURE),
    ("api", PURE),
    ("lab", PURE_K8S_AND_API),
];

const PURE: &[&str] =
    &["model", "admission", "identity", "ipcache", "fqdn", "service", "policy", "flow", "cluster"];
const PURE_AND_STORE: &[&str] =
    &["model", "admission", "identity", "ipcache", "fqdn", "service", "policy", "flow", "cluster", "store"];
const PURE_K8S_AND_API: &[&str] = &[
    "model",
    "admission",
    "identity",
    "ipcache",
    "fqdn",
    "service",
    "policy",
    "flow",
    "cluster",
    "k8s",
    "api",
];

/// What the pure ring never touches: runtimes, IO, clocks and the environment.
const IMPURE: &[&str] = &[
    "tokio",
    "kube",
    "k8s_openapi",
    "aya",
    "hyper",
    "rusqlite",
    "tonic",
    "axum",
    "std::fs",
    "std::env",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
];

/// Crates that one room alone may know.
const ONLY_IN: &[(&str, &str)] =
    &[("aya", "datapath"), ("kube", "k8s"), ("k8s_openapi", "k8s"), ("rusqlite", "store")];

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(|path| {
            if path.is_dir() {
                rust_files(&path)
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                vec![path]
            } else {
                Vec::new()
            }
        })
        .collect()
}

/// The code of a file without comments and without its test module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
        || path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "testrun")
}

fn names_path(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(index, _)| {
        let before = code[..index].chars().next_back();
        let after = code[index + path.len()..].chars().next();
        before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':'))
            && after.is_none_or(|c| !(c.is_alphanumeric() || c == '_'))
    })
}

#[test]
fn every_room_imports_only_what_it_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for (room, allowed) in MAY_IMPORT {
        for file in rust_files(&src.join(room)).into_iter().filter(|file| !is_test_file(file)) {
            let code = code(&file);
            for (other, _) in MAY_IMPORT.iter().filter(|(other, _)| other != room && !allowed.contains(other))
            {
                if names_path(&code, &format!("crate::{other}")) {
                    breaches.push(format!("{}: {room} must not import {other}", file.display()));
                }
            }
            for outer in ["agent", "cli", "config"] {
                if names_path(&code, &format!("crate::{outer}")) {
                    breaches.push(format!("{}: {room} must not import {outer}", file.display()));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn the_pure_ring_touches_no_io_clock_or_runtime() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for room in PURE {
        for file in rust_files(&src.join(room)).into_iter().filter(|file| !is_test_file(file)) {
            let code = code(&file);
            for name in IMPURE
                .iter()
                .filter(|name| code.contains(&format!("{name}::")) || code.contains(&format!("use {name}")))
            {
                breaches.push(format!("{}: {room} is pure and must not use {name}", file.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn one_room_alone_knows_each_engine() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for (name, owner) in ONLY_IN {
        for file in rust_files(&src) {
            let inside = file.strip_prefix(&src).unwrap().starts_with(owner);
            if !inside
                && file.file_stem().is_none_or(|stem| stem != "rooms")
                && names_path(&code(&file), &format!("{name}::")[..name.len()])
                && code(&file).contains(&format!("{name}::"))
            {
                breaches.push(format!("{}: only {owner} may know {name}", file.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn unsafe_code_lives_in_the_datapath_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for file in rust_files(&src) {
        let inside = file.strip_prefix(&src).unwrap().starts_with("datapath");
        if !inside && file.file_stem().is_none_or(|stem| stem != "rooms") && code(&file).contains("unsafe ") {
            breaches.push(file.display().to_string());
        }
    }
    assert!(breaches.is_empty(), "unsafe outside datapath: {}", breaches.join(", "));
}
