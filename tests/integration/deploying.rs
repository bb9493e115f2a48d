//! What stands in `deploy/`: every manifest is YAML, says what it must, and every configuration in it is sound. Where the
//! real definitions are at hand (`TIDEGATE_CRDS=DIR`, their YAML in any depth), every object is held against them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::files::files_in;
use serde_json::Value;
use tidegate::config::{
    self, Given,
    resources::{Kind, Manifests, furnish},
};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Every document of every file, with the file's path. Templates are Helm's to read.
fn documents(folder: &Path) -> Vec<(PathBuf, Value)> {
    let mut files = files_in(folder, "yaml");
    files.retain(|path| !path.components().any(|part| part.as_os_str() == "templates"));
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        documents.into_iter().map(|document| (path.clone(), document)).collect::<Vec<_>>()
    };
    files.iter().flat_map(read).collect()
}

#[test]
fn every_gateway_configuration_is_sound_and_every_inference_resource_means_something() {
    let files = files_in(&deploy(), "yaml");
    let (mut gateways, mut pools) = (0, 0);
    // What refers to a pool may stand in a file beside it.
    let mut resources: BTreeMap<PathBuf, Vec<(String, String)>> = BTreeMap::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        // A Gateway of Kubernetes has its listeners further in.
        let ours = text.starts_with("listeners:") || text.contains("\nlisteners:");
        if path.file_name().unwrap() == "gateway.yaml" && ours {
            let loaded = config::load_bytes(&path.display().to_string(), &bytes);
            let (_, warnings) = loaded.unwrap_or_else(|report| panic!("{report}"));
            assert_eq!(warnings, [], "{}", path.display());
            gateways += 1;
        } else if text.contains("kind: Inference") {
            let folder = path.parent().unwrap().to_owned();
            resources.entry(folder).or_default().push((path.display().to_string(), text));
        }
    }
    for (folder, files) in resources {
        let manifests = Manifests::read(files, "inference").unwrap_or_else(|report| panic!("{report}"));
        let given = Given { manifests: Some("here".into()) };
        let listeners = b"listeners: [{ name: a, address: 127.0.0.1:1 }]";
        let (config, _) = config::load_given("t.yaml", listeners, &given).unwrap_or_else(|it| panic!("{it}"));
        let furnished = furnish(config, &manifests.world);
        assert_eq!(furnished.notes, [], "{}", folder.display());
        assert!(!furnished.config.models.is_empty());
        pools += furnished.config.pools.len();
    }
    assert!(gateways >= 6 && pools >= 3, "{gateways} configurations, {pools} pools");
}

#[test]
fn the_roles_allow_exactly_what_is_read() {
    let mut wanted: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for kind in Kind::ALL {
        let key = (kind.group().to_owned(), kind.plural().to_owned());
        wanted.insert(key, vec!["list".to_owned(), "watch".to_owned()]);
    }
    // A picker says nothing of models, and no pool of its own names a Service.
    let picker = |path: &Path| path.parent().unwrap().ends_with("endpoint-picker");
    // Secrets are read where keys are kept in them, and nothing else is by that role.
    let keys = |path: &Path| path.parent().unwrap().ends_with("components/keys");
    let list_and_watch = vec!["list".to_owned(), "watch".to_owned()];
    let of_keys = BTreeMap::from([((String::new(), "secrets".to_owned()), list_and_watch)]);
    let mut of_picker = wanted.clone();
    of_picker.remove(&(Kind::Slice.group().to_owned(), Kind::Slice.plural().to_owned())).unwrap();
    let status = (Kind::Model.group().to_owned(), format!("{}/status", Kind::Model.plural()));
    wanted.insert(status, vec!["patch".to_owned()]);
    let mut roles = 0;
    for (path, document) in documents(&deploy()) {
        if !["Role", "ClusterRole"].iter().any(|kind| document["kind"] == *kind) {
            continue;
        }
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        let mut given = BTreeMap::new();
        for rule in document["rules"].as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    given.insert((group.clone(), resource), texts(&rule["verbs"]));
                }
            }
        }
        let wanted = match &path {
            path if picker(path) => &of_picker,
            path if keys(path) => &of_keys,
            _ => &wanted,
        };
        assert_eq!(&given, wanted, "{}", path.display());
        roles += 1;
    }
    assert!(roles >= 2);
}

#[test]
fn every_service_monitor_keeps_our_labels() {
    // `pod` is the model server in our families, and the gateway in the operator's own label.
    let files = files_in(&deploy(), "yaml");
    let mut monitors = 0;
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for endpoint in text.lines().filter(|line| line.contains("port: probes, path: /metrics")) {
            assert!(endpoint.contains("honorLabels: true"), "{}: {endpoint}", path.display());
            monitors += 1;
        }
    }
    assert_eq!(monitors, 3, "the operator's, Azure's, Helm's");
}

#[test]
fn a_picker_is_named_as_it_is_installed() {
    let services: Vec<String> = documents(&deploy().join("kubernetes/endpoint-picker"))
        .into_iter()
        .filter(|(_, document)| document["kind"] == "Service")
        .map(|(_, document)| document["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let mut named = 0;
    for (path, document) in documents(&deploy()) {
        if let Some(name) = document["spec"]["endpointPickerRef"]["name"].as_str() {
            assert!(services.iter().any(|service| service == name), "{}: {name}", path.display());
            named += 1;
        }
    }
    assert!(named > 0);
}

#[test]
fn every_example_is_explained_and_every_object_has_a_name() {
    for entry in fs::read_dir(deploy().join("examples")).unwrap() {
        let readme = entry.unwrap().path().join("README.md");
        assert!(fs::read_to_string(&readme).is_ok_and(|text| text.starts_with("# ")), "{}", readme.display());
    }
    for (path, document) in documents(&deploy()) {
        let named = document["metadata"]["name"].is_string();
        let listed = ["Kustomization", "Component"].iter().any(|kind| document["kind"] == *kind);
        let no_object = document.get("kind").is_none();
        assert!(named || listed || no_object, "{}: {document}", path.display());
    }
}

#[test]
fn objects_fit_the_real_definitions_where_those_are_at_hand() {
    let Some(folder) = std::env::var_os("TIDEGATE_CRDS") else {
        return writeln!(std::io::stderr(), "skipped: TIDEGATE_CRDS names no folder of definitions").unwrap();
    };
    let mut schemas: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
    for (_, definition) in documents(Path::new(&folder)) {
        let spec = &definition["spec"];
        for version in spec["versions"].as_array().into_iter().flatten() {
            let api = format!("{}/{}", spec["group"].as_str().unwrap(), version["name"].as_str().unwrap());
            let kind = spec["names"]["kind"].as_str().unwrap().to_owned();
            schemas.entry((api, kind)).or_default().push(version["schema"]["openAPIV3Schema"].clone());
        }
    }
    let (mut held, mut problems) = (0, Vec::new());
    for (path, document) in documents(&deploy()) {
        let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        // Several releases may define one version: to fit one of them is enough.
        let Some(schemas) = schemas.get(&(word("apiVersion"), word("kind"))) else { continue };
        held += 1;
        let wrong = schemas.iter().map(|schema| {
            let mut wrong = Vec::new();
            misfits(&document, schema, "", &mut wrong);
            wrong
        });
        let least = wrong.min_by_key(Vec::len).unwrap();
        problems.extend(least.into_iter().map(|it| format!("{}: {it}", path.display())));
    }
    assert_eq!(problems, [] as [&str; 0]);
    assert!(held >= 8, "{held}");
    let mut wrong = Vec::new();
    let pool = &schemas[&("inference.networking.k8s.io/v1".to_owned(), "InferencePool".to_owned())][0];
    let broken =
        serde_json::json!({"spec": {"targetPorts": "8000", "endpointPickerRef": {"name": "a"}, "selektor": {}}});
    misfits(&broken, pool, "", &mut wrong);
    assert_eq!(wrong.len(), 3, "the test can fail: {wrong:?}");
}

/// What of a structural schema `value` breaks: types, required and unknown fields, enums, bounds.
fn misfits(value: &Value, schema: &Value, path: &str, wrong: &mut Vec<String>) {
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return wrong.push(format!("{path}: {value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        wrong.push(format!("{path}: {value} is not allowed"));
    }
    let number = |key: &str| schema[key].as_f64();
    if let Some(is) = value.as_f64()
        && (number("minimum").is_some_and(|least| is < least) || number("maximum").is_some_and(|most| is > most))
    {
        wrong.push(format!("{path}: {value} is out of bounds"));
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        misfits(item, &schema["items"], &format!("{path}[{at}]"), wrong);
    }
    let Some(fields) = value.as_object() else { return };
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    wrong.extend(required.filter(|it| !fields.contains_key(*it)).map(|it| format!("{path}.{it} is missing")));
    let Some(known) = schema["properties"].as_object() else { return };
    for (key, inner) in fields {
        match known.get(key) {
            Some(schema) => misfits(inner, schema, &format!("{path}.{key}"), wrong),
            None => wrong.push(format!("{path}.{key} is not known")),
        }
    }
}
