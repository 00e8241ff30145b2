//! The promises of the configuration, as tables.

use std::path::Path;

use super::section::KeyChange;
use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, [], &Overrides::default())
}

fn parse_env(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, env, &Overrides::default())
}

/// `CONVOKE_BLESS=1 cargo test cluster_toml` writes the file anew.
#[test]
fn cluster_toml_says_every_key_and_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster.toml");
    let expected = Config::default().commented();
    if std::env::var_os("CONVOKE_BLESS").is_some() {
        std::fs::write(&path, &expected).expect("written");
    }
    let text = std::fs::read_to_string(&path).expect("cluster.toml");
    assert_eq!(text, expected, "cluster.toml is not what the structs say; CONVOKE_BLESS=1 writes it anew");
    assert_eq!(parse(&text).expect("valid"), Config::default());

    let table: toml::Table = toml::from_str(&text).expect("TOML");
    let written = toml::Table::try_from(Config::default()).expect("TOML");
    assert_eq!(table, written, "every key of the structs is in the file, and no other");
}

#[test]
fn every_key_is_documented_and_its_default_is_within_its_bound() {
    let defaults = Config::default().tables();
    for (section, _, keys) in Config::sections() {
        for key in keys {
            assert!(!key.doc.is_empty(), "{section}.{} has no documentation", key.name);
            let default = &defaults[section][key.name];
            assert_eq!(
                default.is_integer(),
                key.bound.is_some(),
                "{section}.{}: numbers have bounds",
                key.name
            );
            if let (Some(bound), Some(number)) = (key.bound, default.as_integer()) {
                assert!(bound.contains(&(number as u64)), "{section}.{} = {number}", key.name);
                assert!(i64::try_from(*bound.end()).is_ok(), "TOML cannot say the bound of {}", key.name);
            }
        }
    }
}

#[test]
fn an_error_names_key_value_and_bound() {
    let cases = [
        ("[limits]\nmax_frame_bytes = 12", "limits.max_frame_bytes = 12: must be 4096..=16777216"),
        (
            "[limits]\nmax_frame_bytes = -1",
            "limits.max_frame_bytes = -1: must be a whole number, 4096..=16777216",
        ),
        ("[limits]\nmax_in_flight = 1.5", "limits.max_in_flight = 1.5: must be a whole number, 1..=65536"),
        (
            "[limits]\nmax_in_flight = \"a\"",
            "limits.max_in_flight = \"a\": must be a whole number, 1..=65536",
        ),
        ("[sessions]\nheartbeat_ms = 5", "sessions.heartbeat_ms = 5: must be 1000..=3600000"),
        ("[tcp]\nlisten = \"here\"", "tcp.listen = \"here\": invalid socket address syntax"),
        ("[tcp]\nlistne = 1", "tcp.listne = 1: no such key; [tcp] has listen"),
        ("[node]\nid = \"a b\"", "node.id = \"a b\": must be 1..=64 letters, digits, '-', '_' and '.'"),
        ("limits = 3", "limits = 3: must be a section: [limits] with its keys below"),
        ("[sessions]\nmax_per_class = { pager = 1 }", "sessions.max_per_class = { pager = 1 }: "),
        ("[sessions]\nmax_per_class = { unknown_9 = 1 }", "there is no class of device unknown_9"),
        (
            "[sessions]\ndevice_conflict = \"fight\"",
            "unknown variant `fight`, expected `replace` or `refuse`",
        ),
        (
            "[sessions]\nlogin_bytes = 2000",
            "must be 4024 or more, since auth.max_token_bytes = 3000 must fit",
        ),
        (
            "[limits]\nmax_body_bytes = 600000",
            "limits.max_body_bytes = 600000: must be at most 524288, half of",
        ),
        ("[log]\nfilter = \"a=b=c\"", "log.filter = \"a=b=c\": "),
        (
            "[tcp]\nlisten = \"0.0.0.0:1\"",
            "not loopback: set tls.certificate and tls.key, or write tls.mode = \"off\"",
        ),
        ("[tls]\nmode = \"on\"", "tls.mode is \"on\", so tls.certificate and tls.key must be set"),
        ("[admin]\nlisten = \"0.0.0.0:1\"", "not loopback: write admin.public = true if that is meant"),
        (
            "[auth]\npublic_keys = [{ kid = \"a\", algorithm = \"HS256\", file = \"x\" }]",
            "unknown variant `HS256`",
        ),
        (
            "[auth]\npublic_keys = [{ kid = \"a\", algorithm = \"EdDSA\", file = \"x\", b = 1 }]",
            "unknown field `b`",
        ),
        ("[[auth.public_keys]]\nkid = \"\"\nalgorithm = \"EdDSA\"\nfile = \"x\"", "every kid must be given"),
        ("[limts]\na = 1", "limts = { a = 1 }: no such section; there are node, tcp, websocket"),
        ("[limits", "the configuration is not TOML"),
    ];
    for (text, expected) in cases {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text:?} says {error:?}, not {expected:?}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let error =
        parse("[limits]\nmax_ranges = 0\nnew = 1\n[node]\nshards = 0").expect_err("wrong").to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn what_is_written_off_may_listen_anywhere() {
    for text in [
        "tls.mode = \"off\"\ntcp.listen = \"0.0.0.0:1\"\nwebsocket.listen = \"[::]:1\"",
        "tls.certificate = \"c\"\ntls.key = \"k\"\ntcp.listen = \"0.0.0.0:1\"",
        "admin.public = true\nadmin.listen = \"0.0.0.0:1\"",
        "tcp.listen = \"[::1]:0\"",
    ] {
        parse(text).expect(text);
    }
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let text = "[tcp]\nlisten = \"127.0.0.1:1\"\n[limits]\nmax_ranges = 5";
    let config = parse_env(
        text,
        &[
            ("CONVOKE_LIMITS_MAX_FRAME_BYTES", "2097152"),
            ("CONVOKE_SESSIONS_MAX_PER_CLASS", "{ mobile = 2 }"),
            ("CONVOKE_NODE_ID", "17"),
            ("CONVOKE_ADMIN_PUBLIC", "true"),
            ("CONVOKE_WEBSOCKET_ORIGINS", "[\"https://a.example\"]"),
            ("CONVOKE_TEST_CLOCK_OFFSET_MS", "5"),
            ("CONVOKE_BLESS", "0"),
            ("PATH", "/bin"),
        ],
    )
    .expect("valid");
    assert_eq!((config.limits.max_frame_bytes, config.limits.max_ranges), (2_097_152, 5));
    assert_eq!(config.sessions.max_per_class.values().copied().collect::<Vec<_>>(), [2]);
    assert_eq!((config.node.id.as_str(), config.admin.public), ("17", true));
    assert_eq!(config.websocket.origins, ["https://a.example"]);

    let flags = Overrides {
        data: Some("/tmp/a b".into()),
        tcp: "127.0.0.1:3".parse().ok(),
        ws: "127.0.0.1:4".parse().ok(),
        admin: "127.0.0.1:5".parse().ok(),
    };
    let env = [("CONVOKE_TCP_LISTEN".to_owned(), "127.0.0.1:2".to_owned())];
    let config = Config::parse(text, env, &flags).expect("valid");
    assert_eq!(
        (config.tcp.listen, config.websocket.listen),
        (([127, 0, 0, 1], 3).into(), ([127, 0, 0, 1], 4).into())
    );
    assert_eq!(
        (config.admin.listen, config.node.data.as_path()),
        (([127, 0, 0, 1], 5).into(), Path::new("/tmp/a b"))
    );
}

#[test]
fn an_error_names_the_variable_or_flag_it_came_from() {
    let cases = [
        (
            "CONVOKE_LIMITS_MAX_RANGES",
            "0",
            "limits.max_ranges = 0: must be 1..=10000 (from the variable CONVOKE_LIMITS_MAX_RANGES)",
        ),
        (
            "CONVOKE_LIMITS_MAX_RANGES",
            "",
            "limits.max_ranges = \"\": must be a whole number, 1..=10000 (from",
        ),
        ("CONVOKE_LIMITS_MAX_RANGES", "1\nmax_body_bytes = 1", "limits.max_ranges = "),
        ("CONVOKE_LIMITS_MAX_RANGE", "1", "CONVOKE_LIMITS_MAX_RANGE = \"1\": no key has this name"),
        ("CONVOKE_LIMITS", "1", "CONVOKE_LIMITS = \"1\": no key has this name"),
        ("CONVOKE_LOG_FORMAT", "xml", "(from the variable CONVOKE_LOG_FORMAT)"),
        ("CONVOKE_TCP_LISTEN", "0.0.0.0:1", "(from the variable CONVOKE_TCP_LISTEN)"),
    ];
    for (name, value, expected) in cases {
        let error = parse_env("", &[(name, value)]).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}={value:?} says {error:?}, not {expected:?}");
    }
    let flags = Overrides { admin: "0.0.0.0:5".parse().ok(), ..Overrides::default() };
    let error = Config::parse("", [], &flags).expect_err("not loopback").to_string();
    assert!(error.ends_with("(from --admin)"), "{error}");
}

#[test]
fn a_retired_key_says_what_to_write_instead() {
    let retired = [Retired { key: "limits.max_size", instead: "write limits.max_frame_bytes" }];
    let error = Config::parse_with("[limits]\nmax_size = 4", [], &Overrides::default(), &retired)
        .expect_err("retired")
        .to_string();
    assert_eq!(error, "limits.max_size = 4: this key is gone; write limits.max_frame_bytes");
    for gone in RETIRED {
        let (section, name) = gone.key.split_once('.').expect("section.key");
        let known = Config::sections()
            .into_iter()
            .any(|(s, _, keys)| s == section && keys.iter().any(|k| k.name == name));
        assert!(!known, "{} is both retired and in use", gone.key);
    }
}

#[test]
fn a_reload_takes_what_may_change_and_lists_the_rest() {
    let old = Config::default();
    let new = parse(
        "[limits]\nmax_connections = 5\nmax_in_flight = 8\n[log]\nfilter = \"debug\"\n[node]\nshards = 2",
    )
    .expect("valid");
    let reload = diff_reload(&old, &new);
    let change =
        |key: &str, old: &str, new: &str| KeyChange { key: key.into(), old: old.into(), new: new.into() };
    assert_eq!(
        reload.report.applied,
        [
            change("limits.max_connections", "100000", "5"),
            change("log.filter", "\"info,scylla=warn\"", "\"debug\"")
        ]
    );
    assert_eq!(
        reload.report.needs_restart,
        [change("node.shards", "1024", "2"), change("limits.max_in_flight", "64", "8")]
    );
    assert_eq!((reload.config.limits.max_connections, reload.config.limits.max_in_flight), (5, 64));
    assert_eq!((reload.config.log.filter.as_str(), reload.config.node.shards), ("debug", 1_024));
    assert_eq!(diff_reload(&old, &old), Reload { config: old, report: ReloadReport::default() });
}

#[test]
fn what_is_shown_can_be_read_again() {
    let text = "[sessions]\nmax_per_class = { mobile = 2, other = 1 }\n\
                [[auth.public_keys]]\nkid = \"k\"\nalgorithm = \"RS256\"\nfile = \"f.pem\"\nissuer = \"i\"";
    let config = parse(text).expect("valid");
    assert_eq!(config.auth.public_keys[0].roles, [crate::auth::Role::User]);
    assert_eq!(parse(&config.to_toml()).expect("valid"), config);
    assert_eq!(parse(&config.commented()).expect("valid"), config);
}

#[test]
fn welcome_tells_the_bounds() {
    let limits = Config::default().wire_limits();
    assert_eq!((limits.max_frame_bytes, limits.max_body_bytes), (1 << 20, 256 << 10));
    assert_eq!((limits.dedup_window_ms, limits.ack_deadline_ms), (120_000, 30_000));
}
