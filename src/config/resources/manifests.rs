//! Objects from files: the manifests that one would give to `kubectl apply`, or what `kubectl get -o yaml` shows.
//!
//! Kinds that are not ours are passed over, so that a directory may hold a whole installation. What cannot be read as the
//! kind that it says to be is an error with its line, as the API server would refuse it too; what objects mean together
//! is judged elsewhere, and its notes are shown here at the lines that they are about.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    Kind, Members, Note, ObjectName, Objects, Weight, World, addresses,
    objects::{Object, Readable},
};
use crate::config::{
    Config, Endpoint, Place, Problem, Report, Severity,
    report::{Finding, Source, nearest},
    shape,
    tree::{self, Kind as NodeKind, Node},
};

/// Files by these names are read, as `kubectl apply -f` does.
const ENDINGS: [&str; 3] = [".yaml", ".yml", ".json"];

/// Kinds of our groups that are no slip of ours: what they say is others' business.
const OTHERS: [&str; 2] = ["InferencePoolImport", "EndpointPickerConfig"];

/// Whether a file of this name is read. Hidden ones are not: a mounted `ConfigMap` keeps its versions there.
pub fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// What was read from files.
#[derive(Debug)]
pub struct Manifests {
    /// The objects.
    pub world: World,
    /// How many objects were of no kind that is read.
    pub passed_over: usize,
    /// What may be meant otherwise than it was read.
    doubts: Vec<Problem>,
    files: Vec<(String, String)>,
    places: BTreeMap<(Kind, ObjectName), Fields>,
}

/// Where an object's fields stand.
#[derive(Debug)]
struct Fields {
    file: usize,
    /// By their path, such as `spec.targetModels[0].name`; the object itself is the empty one.
    places: BTreeMap<String, Place>,
}

impl Manifests {
    /// Reads files, each its name and its text. Objects that name no namespace are in `home`.
    ///
    /// # Errors
    /// With every problem, if there is an error among them.
    pub fn read(files: Vec<(String, String)>, home: &str) -> Result<Self, Report> {
        let mut reading = Reading { home, kinds: BTreeMap::new(), places: BTreeMap::new(), passed_over: 0 };
        let mut problems = Vec::new();
        for (number, (name, text)) in files.iter().enumerate() {
            let source = Source::new(name, text);
            problems.extend(source.problems(reading.file(number, text)));
        }
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(Report { problems });
        }
        let kinds = reading.kinds.into_iter().map(|(kind, objects)| (kind, Arc::new(objects))).collect();
        let world = World { home: home.into(), complete: true, by_workload: true, workloads: BTreeSet::new(), kinds };
        Ok(Self { world, passed_over: reading.passed_over, doubts: problems, places: reading.places, files })
    }

    /// How many objects were read.
    pub fn objects(&self) -> usize {
        self.places.len()
    }

    /// The `InferencePool`s to which no pod belongs: no cluster is asked, so none will come by itself.
    pub fn without_pods(&self, config: &Config) -> Vec<Note> {
        let members = |endpoint: &Endpoint| match endpoint {
            Endpoint::Cluster { members, .. } => Some(members.clone()),
            _ => None,
        };
        let mut notes = Vec::new();
        for pool in &config.pools {
            let Some(all) = pool.endpoints.iter().map(members).collect::<Option<Vec<_>>>() else { continue };
            let Some(Members::InferencePool(reference)) = all.first() else { continue };
            let name = self.world.resolve(reference);
            let Some((kind, _)) = self.world.pool(&name) else { continue };
            if all.iter().all(|members| addresses::targets(&self.world, members).is_empty()) {
                notes.push(Note {
                    kind,
                    name,
                    field: "spec.selector".to_owned(),
                    weight: Weight::Doubt,
                    message: format!("no pod here is one of pool `{}`, and no cluster is asked for them", pool.name),
                    remedy: "give the pool in the configuration more `endpoints` beside `inferencePool`, or put what \
                             `kubectl get pods -o yaml` shows into the directory"
                        .to_owned(),
                });
            }
        }
        notes
    }

    /// The notes at the lines that they are about.
    pub fn problems(&self, notes: &[Note]) -> Vec<Problem> {
        let (mut found, mut nowhere): (BTreeMap<usize, Vec<Finding>>, _) = (BTreeMap::new(), Vec::new());
        for note in notes {
            let Some(fields) = self.places.get(&(note.kind, note.name.clone())) else {
                let message = format!("{} {}: {}", note.kind.word(), note.name, note.message);
                nowhere.push(Finding::warning(Place::default(), message, note.remedy.clone()));
                continue;
            };
            let finding = Finding::warning(fields.place(&note.field), note.message.clone(), note.remedy.clone());
            found.entry(fields.file).or_default().push(finding);
        }
        let of_file = |(file, findings)| {
            let (name, text) = self.files.get::<usize>(file)?;
            Some(Source::new(name, text).problems(findings))
        };
        let nowhere = Source::new("manifests", "").problems(nowhere);
        let placed = found.into_iter().filter_map(of_file).flatten();
        self.doubts.iter().cloned().chain(nowhere).chain(placed).collect()
    }
}

impl Fields {
    /// Of the field, or of the nearest thing around it that is there.
    fn place(&self, field: &str) -> Place {
        let mut path = field;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            let Some(end) = path.rfind(['.', '[']) else { break };
            path = path.get(..end).unwrap_or_default();
        }
        self.places.get("metadata.name").copied().unwrap_or_default()
    }
}

struct Reading<'a> {
    home: &'a str,
    kinds: BTreeMap<Kind, Objects>,
    places: BTreeMap<(Kind, ObjectName), Fields>,
    passed_over: usize,
}

impl Reading<'_> {
    fn file(&mut self, file: usize, text: &str) -> Vec<Finding> {
        let documents = match tree::parse_all(text) {
            Ok(documents) => documents,
            Err(finding) => return vec![finding],
        };
        let mut findings = Vec::new();
        for document in &documents {
            match (&document.kind, text_of(document, "kind")) {
                (NodeKind::Null, _) => {}
                (_, Some((kind, _))) if kind.ends_with("List") && field(document, "items").is_some() => {
                    let items = field(document, "items").map(|items| &items.kind);
                    if let Some(NodeKind::List(items)) = items {
                        for item in items {
                            self.object(file, item, &mut findings);
                        }
                    }
                }
                _ => self.object(file, document, &mut findings),
            }
        }
        findings
    }

    fn object(&mut self, file: usize, node: &Node, findings: &mut Vec<Finding>) {
        let kind = match kind_of(node) {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                self.passed_over += 1;
                return findings.extend(slip(node));
            }
            Err(finding) => return findings.push(finding),
        };
        let (name, object) = match Object::read(kind, &Yaml { node, kind }, self.home) {
            Ok(read) => read,
            Err(misfits) => return findings.extend(misfits),
        };
        let mut fields = Fields { file, places: BTreeMap::new() };
        places(node, "", &mut fields.places);
        let key = (kind, name.clone());
        if let Some(first) = self.places.get(&key) {
            let place = fields.place("metadata.name");
            let where_ = if first.file == file { "this file" } else { "another file" };
            let remedy = format!("keep one: the first is in {where_}, line {}", first.place("metadata.name").line);
            return findings.push(Finding::error(place, format!("there are two {}s {name}", kind.word()), remedy));
        }
        self.places.insert(key, fields);
        self.kinds.entry(kind).or_default().insert(name, Arc::new(object));
    }
}

/// The kind of an object, if it is one that is read.
fn kind_of(node: &Node) -> Result<Option<Kind>, Finding> {
    let Some((word, place)) = text_of(node, "kind") else {
        let remedy = "begin it with `apiVersion: ...` and `kind: ...`, or move the file out of this directory";
        return Err(Finding::error(node.place, "this is no Kubernetes object", remedy));
    };
    let Some((api, api_place)) = text_of(node, "apiVersion") else {
        return Err(Finding::error(place, "`apiVersion` is missing", "add `apiVersion: ...` before `kind`"));
    };
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let same_word = || Kind::ALL.into_iter().filter(|kind| kind.word() == word);
    let Some(kind) = same_word().find(|kind| kind.group() == group) else {
        let inference = same_word().any(Kind::is_custom);
        let served: Vec<_> = same_word().flat_map(api_versions).collect();
        let message = format!("there is no {word} in `{group}`");
        let wrong = || Finding::error(api_place, message, format!("write one of {}", served.join(", ")));
        return if inference { Err(wrong()) } else { Ok(None) };
    };
    if !kind.versions().contains(&version) {
        let message = format!("the version `{version}` of {word} is not understood");
        let remedy = format!("understood are {}", same_word().flat_map(api_versions).collect::<Vec<_>>().join(", "));
        return Err(Finding::error(api_place, message, remedy));
    }
    Ok(Some(kind))
}

/// What is of a group of ours, and of no kind that it has.
fn slip(node: &Node) -> Option<Finding> {
    let (word, place) = text_of(node, "kind")?;
    let (group, _) = text_of(node, "apiVersion")?.0.split_once('/')?;
    let known = || Kind::ALL.into_iter().filter(|kind| kind.is_custom());
    if OTHERS.contains(&word) || !known().any(|kind| kind.group() == group) {
        return None;
    }
    let near = nearest(word, known().map(Kind::word))?;
    let remedy = format!("did you mean `{near}`?");
    Some(Finding::warning(place, format!("`{group}` has no `{word}`: it is passed over"), remedy))
}

fn api_versions(kind: Kind) -> impl Iterator<Item = String> {
    kind.versions().iter().map(move |version| match kind.group() {
        "" => (*version).to_owned(),
        group => format!("{group}/{version}"),
    })
}

fn field<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let NodeKind::Map(entries) = &node.kind else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

fn text_of<'a>(node: &'a Node, key: &str) -> Option<(&'a str, Place)> {
    let value = field(node, key)?;
    match &value.kind {
        NodeKind::Text(text) => Some((text, value.place)),
        _ => None,
    }
}

/// Where everything in `node` stands; of a map or list the place of its key is shown.
fn places(node: &Node, path: &str, found: &mut BTreeMap<String, Place>) {
    match &node.kind {
        NodeKind::Map(entries) => {
            for entry in entries {
                let inner = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                let scalar = !matches!(entry.value.kind, NodeKind::Map(_) | NodeKind::List(_) | NodeKind::Null);
                found.insert(inner.clone(), if scalar { entry.value.place } else { entry.key_place });
                places(&entry.value, &inner, found);
            }
        }
        NodeKind::List(items) => {
            for (number, item) in items.iter().enumerate() {
                let inner = format!("{path}[{number}]");
                found.insert(inner.clone(), item.place);
                places(item, &inner, found);
            }
        }
        _ => {}
    }
}

struct Yaml<'a> {
    node: &'a Node,
    kind: Kind,
}

impl Readable for Yaml<'_> {
    type Error = Vec<Finding>;

    fn typed<T: DeserializeOwned>(&self) -> Result<T, Vec<Finding>> {
        let reading = shape::read_part::<T>(self.node);
        let errors = reading.findings.iter().any(|finding| finding.severity == Severity::Error);
        // A pod as the cluster shows it has many fields, and none was typed by a person.
        match reading.value {
            Some(value) if !errors || !self.kind.is_custom() => Ok(value),
            _ => Err(reading.findings),
        }
    }
}
