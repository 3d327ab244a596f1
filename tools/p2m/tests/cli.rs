// SPDX-License-Identifier: GPL-2.0

//! The program without the device. What needs it, is in `selftests/cli.sh`.

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty, starts_with};

fn p2m(line: &str) -> assert_cmd::assert::Assert {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2m"));
    command.args(line.split_whitespace()).assert()
}

#[test]
fn wrong_usage_exits_with_2_and_says_how_it_is_right() {
    for line in [
        "",
        "bogus",
        "info --bogus",
        "alloc",
        "alloc 0",
        "alloc 1M --policy bogus",
        "alloc 1M --seed 1",
        "map",
        "check",
        "stat --fd 3",
        "translate --pid 1",
        "alloc 1M --on-demand --check",
        "plot",
        "release --pid 1",
        "release --pid 1 5..5",
        "populate",
        "move --pid 1 --policy contiguous",
        "move --pid 1 --seed 1",
        "evacuate --pid 1",
        "evacuate --pid 1 0..9 --keep-out --readmit",
        "contig --pid 1",
        "contig --pid 1 0..8 --address-bits 65",
        "exchange --pid 1 0..8",
        "audit",
        "space",
        "space create --pid 1",
        "space create --pid 1 --pool 0..8 --levels 3",
        "space map --pid 1 --space 1 0",
        "space map --pid 1 --space 1 0 0 --flags rwq",
        "space unmap --pid 1 --space 1",
        "space dump --pid 1 --space 0x100000000",
        "space access --pid 1 --space 1 0 --words 0",
        "walk --pid 1 0",
        "dma",
        "dma plan --pid 1",
        "dma plan --pid 1 0..9 --mask 65",
        "dma plan --pid 1 0..9 --align 3",
        "region create --pid 1",
        "region create --pid 1 1M --colour 3/3",
        "region create --pid 1 1M --seed 1",
        "region destroy --pid 1",
        "region list",
        "crash",
        "crash load --kernel k",
        "crash load --kernel k --initrd i --memory 2G",
        "crash load --kernel k --initrd i --dma-memory 129M",
        "alloc 1M --below 4G --mfns 1..2",
        "guard",
        "guard check",
        "foreign map --pid 1 5 6",
        "foreign unmap --pid 1",
        "identity --pid 1",
        "fail-nth --pid 1",
        "trace --fd 3",
        "trace --for x",
        "space list",
        "completions bogus",
    ] {
        p2m(line)
            .code(2)
            .stdout(is_empty())
            .stderr(contains("--help").or(contains("Usage:")));
    }
}

#[test]
fn a_missing_device_means_that_the_module_is_not_loaded() {
    for line in ["info", "stat", "alloc 1M", "info --json"] {
        p2m(&format!("--device /nonexistent {line}"))
            .code(1)
            .stdout(is_empty())
            .stderr(starts_with("p2m: /nonexistent: cannot open"))
            .stderr(contains(
                "\nhint: the module is not loaded: insmod p2m.ko\n",
            ));
    }
}

#[test]
fn another_device_is_told_from_the_right_one() {
    p2m("--device /dev/null info")
        .code(1)
        .stdout(is_empty())
        .stderr(contains("hint: the descriptor is not one of /dev/p2m"));
}

#[test]
fn only_a_process_with_the_device_can_be_attached_to() {
    let pid = std::process::id();
    for command in [
        "map",
        "check",
        "stat",
        "translate 1",
        "plot",
        "release 1",
        "populate",
        "move",
        "evacuate 1",
        "contig 1",
        "exchange 1 2",
        "audit",
        "space create --pool 1..2",
        "space map --space 1 0 0",
        "space dump --space 1",
        "walk --space 1 0",
        "space list",
        "region create 1M",
        "region destroy 0",
        "region list",
        "guard check",
        "foreign map --from-pid 1 5 6",
        "foreign unmap 5",
        "identity 5",
        "fail-nth 1",
        "trace",
    ] {
        p2m(&format!("{command} --pid {pid}"))
            .code(1)
            .stdout(is_empty())
            .stderr(contains(format!(
                "process {pid} has no descriptor of /dev/p2m"
            )));
        // It doesn't attach.
        if command == "trace" {
            continue;
        }
        p2m(&format!("{command} --pid {pid} --fd 999"))
            .code(1)
            .stdout(is_empty())
            .stderr(contains("hint: the process has no such descriptor"));
    }
}

#[test]
fn there_is_help_for_every_command() {
    for command in [
        "info",
        "stat",
        "alloc",
        "map",
        "translate",
        "check",
        "plot",
        "space",
        "walk",
        "release",
        "populate",
        "move",
        "evacuate",
        "contig",
        "collapse",
        "exchange",
        "audit",
        "region",
        "guard",
        "dma",
        "foreign",
        "identity",
        "fail-nth",
        "trace",
        "guest",
        "crash",
        "completions",
    ] {
        p2m("--help")
            .code(0)
            .stdout(contains(format!("\n  {command} ")));
        p2m(&format!("{command} --help"))
            .code(0)
            .stdout(contains("Usage: p2m"));
    }
}

#[test]
fn there_is_help_for_every_command_of_spaces() {
    for command in [
        "create", "destroy", "list", "map", "unmap", "protect", "remap", "dump", "access",
    ] {
        p2m("space --help")
            .code(0)
            .stdout(contains(format!("\n  {command} ")));
        p2m(&format!("space {command} --help"))
            .code(0)
            .stdout(contains(format!("Usage: p2m space {command}")));
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        p2m(&format!("completions {shell}"))
            .code(0)
            .stdout(contains("translate"))
            .stderr(is_empty());
    }
}
