//! What `deploy/` says of the binary is true: every variable, port, path and flag in it is one that the binary knows.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser as _;
use convoke::cmd::Cli;
use convoke::config::{Config, Overrides};
use yaml_rust2::{Yaml, YamlLoader};

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

/// The instructions of the image that runs, continued lines joined: name and the rest.
fn instructions() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let last = text.rfind("\nFROM").unwrap();
    let lines = text[last..].lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        .collect()
}

fn instruction(name: &str) -> String {
    let all = instructions();
    all.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).1.clone()
}

fn array(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap()
}

fn image_variables() -> BTreeMap<String, String> {
    let pairs = instruction("ENV");
    let pairs = pairs.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn config(variables: &BTreeMap<String, String>) -> Config {
    let nowhere = tempfile::NamedTempFile::new().unwrap();
    let variables = variables.clone().into_iter();
    Config::load(Some(nowhere.path()), variables, &Overrides::default()).unwrap()
}

fn ports(config: &Config) -> Vec<u16> {
    let Config { tcp, websocket, admin, links, .. } = config;
    vec![tcp.listen.port(), websocket.listen.port(), admin.listen.port(), links.listen.port()]
}

fn parses(arguments: &[String]) {
    let parsed = Cli::try_parse_from(["convoke".to_owned()].iter().chain(arguments));
    parsed.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
}

#[test]
fn the_image_runs_a_node_as_nobody_in_particular() {
    assert_eq!(array(&instruction("ENTRYPOINT")), ["convoke"]);
    parses(&array(&instruction("CMD")));
    let check = instruction("HEALTHCHECK");
    let command = array(check.split_once("CMD ").unwrap().1);
    assert_eq!(command[0], "convoke");
    parses(&command[1..]);
    assert!(instruction("USER").parse::<u32>().unwrap() > 0, "not root");
    let config = config(&image_variables());
    for exposed in instruction("EXPOSE").split_whitespace() {
        assert!(ports(&config).contains(&exposed.parse().unwrap()), "nothing listens on {exposed}");
    }
    assert_eq!(Path::new(&instruction("VOLUME")), config.node.data);
    assert_eq!(command[4], instruction("VOLUME"), "the check looks where the node writes");
}

fn merged(service: &Yaml) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut take = |map: &Yaml| {
        for (name, value) in map.as_hash().into_iter().flatten() {
            if let (Some(name), Some(value)) = (name.as_str(), value.as_str()) {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
    };
    let environment = &service["environment"];
    take(&environment["<<"]);
    take(environment);
    variables
}

fn texts(list: &Yaml) -> Vec<String> {
    list.as_vec().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn three_nodes_are_composed_of_what_the_binary_knows() {
    let compose = &YamlLoader::load_from_str(&read("compose.yaml")).unwrap()[0];
    let services = &compose["services"];
    let volumes: Vec<_> =
        compose["volumes"].as_hash().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    let mut ids = Vec::new();
    let mut published = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let service = &services[name];
        let mut variables = image_variables();
        variables.extend(merged(service));
        let config = config(&variables);
        ids.push(config.node.id.clone());
        assert_eq!(config.node.id, name);
        // Others reach it under the service's name, and on the port that it listens on.
        assert_eq!(config.links.advertise, format!("{name}:{}", config.links.listen.port()));
        assert!(config.links.is_encrypted());
        for port in texts(&service["ports"]) {
            let (outside, inside) = port.split_once(':').unwrap();
            assert!(ports(&config).contains(&inside.parse().unwrap()), "nothing listens on {inside}");
            let advertised = [&config.node.advertise_tcp, &config.node.advertise_ws];
            assert!(
                advertised.iter().any(|address| address.ends_with(outside)),
                "{outside} is told to nobody"
            );
            published.push(outside.to_owned());
        }
        let mounts = texts(&service["volumes"]);
        let (volume, at) = mounts[0].split_once(':').unwrap();
        assert!(volumes.contains(&volume));
        for file in [&config.node.data, &config.links.authority, &config.links.certificate, &config.links.key]
        {
            assert!(file.starts_with(at), "{} is in no volume", file.display());
        }
        let (host, port) = config.scylla.nodes[0].split_once(':').unwrap();
        assert!(!services[host].is_badvalue() && port == "9042");
        assert!(config.redis.url.contains("//redis:6379"));
        assert!(!services["redis"].is_badvalue());
    }
    published.sort();
    published.dedup();
    assert_eq!((ids.len(), published.len()), (3, 6));
}

/// What the service that prepares everything runs: each command of ours is one that the binary has, and what it makes is
/// where the nodes look for it.
#[test]
fn what_is_prepared_is_what_the_nodes_look_for() {
    let compose = &YamlLoader::load_from_str(&read("compose.yaml")).unwrap()[0];
    let setup = &compose["services"]["setup"];
    config(&merged(setup));
    let script = texts(&setup["command"]).concat();
    let mut commands = 0;
    for line in script.lines() {
        if let Some((_, arguments)) = line.split_once("convoke ") {
            let arguments = arguments.split("||").next().unwrap();
            parses(&arguments.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            commands += 1;
        }
    }
    assert_eq!(commands, 2, "{script}");
    for made in ["token.key", "authority.pem"] {
        assert!(script.contains(&format!("/authority/{made}")), "{made}");
    }
    for name in ["n1", "n2", "n3"] {
        assert!(texts(&setup["volumes"]).contains(&format!("{name}:/{name}")));
    }
}
