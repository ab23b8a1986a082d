use super::*;
use crate::digest::StepKey;
use crate::name::Name;
use crate::store::testing::{Scratch, scratch};
use crate::store::uses::testing::age;
use crate::store::{Action, Store};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// No cap is ever reached.
const ROOMY: Caps = Caps { size: u64::MAX, age: Duration::MAX };

struct Depot {
    s: Scratch,
    needed: Needed,
}

impl Depot {
    fn new() -> Depot {
        Depot { s: scratch(), needed: Needed::default() }
    }

    /// An object of about `kib` KiB out of a step of this kind, last used so many days ago.
    fn made(&self, kind: &str, name: &str, kib: usize, days: u32) -> ObjectDigest {
        let output = self.s.store.publish_bytes(name.repeat(kib * 1024 / name.len()).as_bytes()).unwrap();
        let input = if kind == "deb" { "package" } else { "fetch image x" };
        self.record(kind, name, output, vec![(input.to_owned(), name.to_owned())], days);
        output
    }

    fn record(&self, kind: &str, name: &str, output: ObjectDigest, inputs: Vec<(String, String)>, days: u32) {
        let key = key(name);
        let action = Action { kind: kind.to_owned(), output, inputs, millis: 1, subject: String::new() };
        self.s.store.record(&key, &action).unwrap();
        age(&self.s.store.action_path(&key), DAY * days);
        age(&self.s.store.object_path(&output), DAY * days);
    }

    fn file(&self, path: &str, kib: usize, days: u32) -> PathBuf {
        let path = self.s.store.home().store().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, vec![1; kib * 1024]).unwrap();
        age(&path, DAY * days);
        path
    }

    fn choose(&mut self, caps: Caps) -> Vec<Victim> {
        let inventory = self.s.store.inventory().unwrap();
        self.needed.close(&inventory);
        let path = |object: &_| self.s.store.object_path(object);
        choose(&inventory, &path, &self.needed, caps, SystemTime::now())
    }

    /// Kind, subject and reason of what goes.
    fn chosen(&mut self, caps: Caps) -> Vec<String> {
        let shown = |v: Victim| format!("{} {} {:?}", v.kind, v.subject, v.why);
        self.choose(caps).into_iter().map(shown).collect()
    }

    fn collect(&mut self, caps: Caps) -> u64 {
        let victims = self.choose(caps);
        self.s.store.lock_exclusive(&|_| ()).unwrap().remove(&victims).unwrap()
    }
}

fn key(name: &str) -> StepKey {
    StepKey::from(blake3::hash(name.as_bytes()))
}

fn user() -> User {
    User::Built { project: Name::new("shop").unwrap(), vm: Name::new("web").unwrap() }
}

fn aged(days: u32) -> Caps {
    Caps { age: DAY * days, ..ROOMY }
}

#[test]
fn what_was_not_used_for_too_long_goes_unless_it_is_needed() {
    let mut depot = Depot::new();
    let old = depot.made("deb", "old", 8, 40);
    let needed = depot.made("deb", "needed", 8, 400);
    let young = depot.made("deb", "young", 8, 20);
    depot.needed.object(needed, user());
    depot.needed.keys.insert(key("needed"));
    assert_eq!(depot.chosen(aged(30)), ["deb old Age"]);
    assert!(depot.collect(aged(30)) >= 8 * 1024);
    let has = [old, needed, young].map(|object| depot.s.store.has(&object));
    assert_eq!(has, [false, true, true]);
    assert_eq!(depot.s.store.action(&key("old")), None);
    assert!(depot.s.store.action(&key("young")).is_some());
    assert!(depot.chosen(aged(30)).is_empty());
}

#[test]
fn a_store_that_is_too_big_loses_what_was_used_longest_ago() {
    let mut depot = Depot::new();
    let [first, second, third] =
        [("a", 3), ("b", 2), ("c", 1)].map(|(n, days)| depot.made("image", n, 64, days));
    depot.needed.object(depot.made("image", "d", 64, 9), user());
    let whole = depot.s.store.inventory().unwrap().bytes();
    assert!(depot.chosen(Caps { size: whole, ..ROOMY }).is_empty());
    let victims = depot.choose(Caps { size: whole - 1, ..ROOMY });
    assert_eq!(victims.iter().map(|v| v.object.unwrap()).collect::<Vec<_>>(), [first]);
    assert_eq!(victims[0].why, Why::Size);
    let victims = depot.choose(Caps { size: whole - 80 * 1024, ..ROOMY });
    assert_eq!(victims.iter().map(|v| v.object.unwrap()).collect::<Vec<_>>(), [first, second]);
    // Nothing takes what is needed away.
    depot.collect(Caps { size: 0, ..ROOMY });
    assert!(!depot.s.store.has(&third));
    assert_eq!(depot.s.store.objects().unwrap().len(), 1);
}

#[test]
fn an_object_is_as_young_as_the_last_use_of_any_step_that_gives_it() {
    let mut depot = Depot::new();
    let object = depot.made("image", "a", 8, 40);
    depot.record("image", "other inputs", object, vec![], 1);
    age(&depot.s.store.object_path(&object), DAY * 40);
    // Only the record that was not used goes.
    assert_eq!(depot.chosen(aged(30)), ["record image x Age"]);
    depot.collect(aged(30));
    assert!(depot.s.store.has(&object) && depot.s.store.action(&key("other inputs")).is_some());
}

#[test]
fn reusing_something_keeps_it() {
    let mut depot = Depot::new();
    depot.made("image", "a", 8, 40);
    depot.s.store.reuse(&key("a")).unwrap();
    assert!(depot.chosen(aged(30)).is_empty());
}

#[test]
fn pins_of_a_lock_file_keep_what_was_fetched_for_them_and_for_nothing_else() {
    let mut depot = Depot::new();
    let sha = |c: &str| c.repeat(64);
    let deb = |depot: &Depot, name: &str, sha: String| {
        let output = depot.s.store.publish_bytes(name.as_bytes()).unwrap();
        depot.record("deb", name, output, vec![("package".into(), name.into()), ("sha256".into(), sha)], 40);
    };
    deb(&depot, "dash", sha("a"));
    deb(&depot, "bash", sha("b"));
    deb(&depot, "gone", sha("c"));
    // An address that looks like a digest is none.
    let file = depot.s.store.publish_bytes(b"file").unwrap();
    let url = format!("https://example.org/{}", sha("d"));
    depot.record("url", "url", file, vec![("url".into(), url), ("sha256".into(), sha("b"))], 40);
    // An image of another project, half of whose packages are pinned here.
    let other = depot.s.store.publish_bytes(b"[]").unwrap();
    let inputs = vec![("dash".into(), format!("1 {}", sha("a"))), ("gone".into(), format!("1 {}", sha("c")))];
    depot.record("fetch image", "other", other, inputs, 40);
    depot.needed.lock("/p/firegopher.lock".into(), &format!("\"{}\"\n\"sha256:{}\"\n", sha("a"), sha("b")));
    let mut chosen = depot.chosen(aged(30));
    chosen.sort();
    assert_eq!(chosen, ["deb gone Age", "fetch image dash, gone Age"]);
}

#[test]
fn an_object_that_a_lock_file_names_stays_without_a_record() {
    let mut depot = Depot::new();
    let (pinned, other) = (depot.made("deb", "dash", 8, 40), depot.made("deb", "bash", 8, 40));
    std::fs::remove_dir_all(depot.s.store.home().store().join("actions")).unwrap();
    depot.needed.lock("/p/firegopher.lock".into(), &format!("blake3 = \"{pinned}\"\n"));
    depot.collect(aged(30));
    assert!(depot.s.store.has(&pinned) && !depot.s.store.has(&other));
}

#[test]
fn both_names_of_a_pin_stand_for_the_step_that_fetched_it() {
    let mut depot = Depot::new();
    let (sha256, blake3) = ("a".repeat(64), "b".repeat(64));
    let output = depot.s.store.publish_bytes(b"[]").unwrap();
    let inputs = vec![("dash".into(), format!("1 {sha256} {blake3}"))];
    depot.record("fetch image", "dash", output, inputs, 40);
    depot.needed.lock("/p/firegopher.lock".into(), &format!("\"{sha256}\" \"{blake3}\""));
    assert!(depot.chosen(aged(30)).is_empty());
    depot.needed = Needed::default();
    depot.needed.lock("/p/firegopher.lock".into(), &format!("\"{sha256}\""));
    assert_eq!(depot.chosen(aged(30)), ["fetch image dash Age"]);
}

#[test]
fn the_parts_of_what_is_needed_are_needed() {
    let mut depot = Depot::new();
    let deb = depot.made("deb", "dash", 8, 40);
    let parts = depot.s.store.publish_bytes(format!("{{\"debs\":[\"{deb}\"]}}").as_bytes()).unwrap();
    depot.record("fetch image", "parts", parts, vec![], 1);
    depot.needed.object(parts, user());
    assert!(depot.chosen(aged(30)).is_empty());
    assert_eq!(depot.needed.objects[&deb].iter().next(), Some(&user()));
}

#[test]
fn what_names_a_victim_is_fetched_anew() {
    let mut depot = Depot::new();
    let deb = depot.made("deb", "dash", 8, 40);
    let parts = depot.s.store.publish_bytes(format!("{{\"debs\":[\"{deb}\"]}}").as_bytes()).unwrap();
    depot.record("fetch image", "parts", parts, vec![], 1);
    assert_eq!(depot.chosen(aged(30)), ["deb dash Age", "record fetch image Useless"]);
    depot.collect(aged(30));
    assert_eq!(depot.s.store.action(&key("parts")), None);
}

#[test]
fn records_of_nothing_go_at_once() {
    let mut depot = Depot::new();
    let object = depot.made("image", "a", 8, 0);
    std::fs::remove_file(depot.s.store.object_path(&object)).unwrap();
    depot.made("image", "b", 8, 0);
    std::fs::write(depot.s.store.action_path(&key("b")), "{").unwrap();
    let victims = depot.choose(ROOMY);
    let because: BTreeSet<&str> = victims.iter().map(|v| v.because).collect();
    assert_eq!(because, BTreeSet::from(["its output is gone", "it cannot be read"]));
    depot.collect(ROOMY);
    assert_eq!(depot.s.store.inventory().unwrap().records.len(), 0);
}

#[test]
fn caches_go_by_their_own_rules() {
    let mut depot = Depot::new();
    let paths = [
        depot.file("stat/old", 8, 40),
        depot.file("stat/young", 8, 1),
        depot.file("quarantine/old", 8, 40),
        depot.file("quarantine/young", 8, 2),
        depot.file("partial/old/bytes", 8, 8),
        depot.file("partial/new/bytes", 8, 6),
        depot.file("locks/dead", 0, 0),
        depot.file("apt/updated", 8, 3),
    ];
    let there = || paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
    depot.collect(aged(30));
    assert_eq!(there(), [false, true, false, true, false, true, false, true]);
    // A stat cache costs nothing to keep and a lot to lose.
    depot.collect(Caps { size: 0, ..ROOMY });
    assert_eq!(there(), [false, true, false, false, false, false, false, false]);
    assert!(!depot.s.store.home().apt().exists());
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_old() {
    let mut depot = Depot::new();
    let object = depot.made("image", "a", 8, 0);
    for path in [depot.s.store.object_path(&object), depot.s.store.action_path(&key("a"))] {
        std::fs::File::open(path).unwrap().set_modified(SystemTime::now() + DAY).unwrap();
    }
    assert!(depot.chosen(aged(0)).is_empty());
}

#[test]
fn trees_go_whole_and_leave_nothing_in_tmp() {
    let mut depot = Depot::new();
    let temp = depot.s.store.temp_dir().unwrap();
    let dir = temp.path().join("out");
    std::fs::create_dir_all(dir.join("a/b")).unwrap();
    std::fs::write(dir.join("a/b/c"), "x").unwrap();
    let tree = depot.s.store.publish_tree(&dir).unwrap();
    drop(temp);
    assert!(depot.collect(Caps { size: 0, ..ROOMY }) > 0);
    assert!(!depot.s.store.has(&tree));
    assert_eq!(std::fs::read_dir(depot.s.store.dir("tmp")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_removed_is_told_and_the_rest_goes() {
    let mut depot = Depot::new();
    let (a, b) = (depot.made("image", "a", 8, 40), depot.made("image", "b", 8, 40));
    let mut victims = depot.choose(aged(30));
    // A name that leads nowhere stands for a disk that refuses.
    victims[0].path = victims[1].path.join("not a directory");
    let error = depot.s.store.lock_exclusive(&|_| ()).unwrap().remove(&victims).unwrap_err();
    assert_eq!(error.code(), "store.remove");
    let left = [a, b].map(|object| depot.s.store.has(&object));
    assert_eq!(left.iter().filter(|there| **there).count(), 1);
}

#[test]
fn gc_waits_until_nobody_else_has_the_store() {
    let mut depot = Depot::new();
    depot.made("image", "a", 8, 40);
    let victims = depot.choose(aged(30));
    let other = Store::open(depot.s.store.home().clone()).unwrap();
    let told = std::sync::Mutex::new(String::new());
    std::thread::scope(|scope| {
        let store = &mut depot.s.store;
        let gc = scope.spawn(|| {
            let exclusive = store.lock_exclusive(&|who| who.clone_into(&mut told.lock().unwrap())).unwrap();
            exclusive.remove(&victims).unwrap();
        });
        std::thread::sleep(Duration::from_millis(1300));
        assert_eq!(other.objects().unwrap().len(), 1);
        drop(other);
        gc.join().unwrap();
    });
    assert!(told.into_inner().unwrap().contains(&format!("(pid {})", std::process::id())));
    assert_eq!(depot.s.store.objects().unwrap().len(), 0);
}
