use std::collections::HashSet;

use crate::sqlite::Durability;
use crate::testing::{World, issuer};
use crate::{ChangeFault, Cursor, Name, NameFault, NewDevice, Page, StoreFault, Timestamp, User, UserId};

#[test]
fn a_user_is_found_by_name_whatever_its_case() {
    let mut world = World::new();
    let ann = world.user("Ann.Lee@Example.org");

    assert_eq!(world.store.user_by_name("ann.lee@example.ORG").unwrap(), Some(ann.clone()));
    assert_eq!(world.store.user(ann.id).unwrap(), Some(ann));
    assert_eq!(world.store.user_by_name("bob").unwrap(), None);
    assert_eq!(world.store.user_by_name("not a name").unwrap(), None);
}

#[test]
fn two_users_cannot_have_one_name() {
    let mut world = World::new();
    world.user("Ann");
    let change = world.change();

    let fault = world.store.add_user(&change, "ANN", "").unwrap_err();

    assert_eq!(fault.to_string(), "there is a user named Ann already");
}

#[test]
fn hostile_names_do_not_reach_the_database() {
    let mut world = World::new();
    let change = world.change();

    for name in ["", "../../etc/passwd", "a'; DROP TABLE users; --", "ann\0", "ann\u{202e}", "аnn", "a b"] {
        let fault = world.store.add_user(&change, name, "").unwrap_err();
        assert!(matches!(fault, ChangeFault::Name(_)), "{name:?}");
    }
    let long = "n".repeat(65);
    let fault = world.store.add_user(&change, &long, "").unwrap_err();
    assert!(matches!(fault, ChangeFault::Name(NameFault::TooLong)));
    let fault = world.store.add_user(&change, "ann", &"n".repeat(1025)).unwrap_err();
    assert!(matches!(fault, ChangeFault::Store(StoreFault::TooLong { .. })));
    assert_eq!((world.number("SELECT count(*) FROM users"), world.audits()), (0, 0));
}

#[test]
fn notes_hold_any_text() {
    let mut world = World::new();
    let change = world.change();
    let note = "O'Brien; \"DROP TABLE users\" \u{1f600}\n\0";

    let user = world.store.add_user(&change, "ann", note).unwrap();

    assert_eq!(world.store.user(user.id).unwrap().unwrap().note, note);
}

#[test]
fn a_removed_users_name_can_be_used_again() {
    let mut world = World::new();
    let old = world.user("ann");
    let change = world.change();
    world.store.remove_user(&change, old.id).unwrap();

    let new = world.user("Ann");

    assert_ne!(new.id, old.id);
    assert_eq!(world.store.user_by_name("ann").unwrap().unwrap().id, new.id);
    assert!(world.store.user(old.id).unwrap().unwrap().removed.is_some());
}

#[test]
fn removing_a_user_revokes_everything_it_has() {
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("ann", "phone"));
    let other = world.device("bob", "laptop");
    for (number, device) in [(1, &laptop), (2, &laptop), (3, &phone), (4, &other)] {
        world.certificate(device, number);
    }
    let change = world.change();

    let removed = world.store.remove_user(&change, laptop.user).unwrap();

    assert_eq!(removed.removed, Some(change.now));
    for device in [&laptop, &phone] {
        assert_eq!(world.store.device(device.id).unwrap().unwrap().revoked, Some(change.now));
    }
    let listed = world.store.revocations(&issuer(), &Page::default()).unwrap();
    let serials: Vec<String> = listed.items.iter().map(|row| row.serial.to_string()).collect();
    assert_eq!(serials, ["01", "02", "03"]);
    assert_eq!(world.store.device(other.id).unwrap().unwrap().revoked, None);
}

#[test]
fn removing_twice_changes_nothing() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let change = world.change();
    let first = world.store.remove_user(&change, device.user).unwrap();
    let audits = world.audits();

    let change = world.change();
    let second = world.store.remove_user(&change, device.user).unwrap();

    assert_eq!(second, first);
    assert_eq!(world.audits(), audits);
}

#[test]
fn suspending_and_resuming_are_idempotent() {
    let mut world = World::new();
    let ann = world.user("ann");

    let change = world.change();
    let since = world.store.suspend_user(&change, ann.id).unwrap().suspended;
    let later = world.change();
    assert_eq!(world.store.suspend_user(&later, ann.id).unwrap().suspended, since);
    assert_eq!(since, Some(change.now));

    assert_eq!(world.store.resume_user(&later, ann.id).unwrap(), ann);
    assert_eq!(world.store.resume_user(&later, ann.id).unwrap(), ann);
    assert_eq!(world.audits(), 3, "added, suspended, resumed");
}

#[test]
fn a_removed_user_comes_back_by_nothing() {
    let mut world = World::new();
    let ann = world.user("ann");
    let change = world.change();
    world.store.remove_user(&change, ann.id).unwrap();

    let new = NewDevice { name: "laptop", ..Default::default() };
    assert!(matches!(world.store.resume_user(&change, ann.id), Err(ChangeFault::NotFound("user"))));
    assert!(matches!(world.store.suspend_user(&change, ann.id), Err(ChangeFault::NotFound("user"))));
    assert!(matches!(world.store.add_device(&change, ann.id, &new), Err(ChangeFault::NotFound("user"))));
}

#[test]
fn users_are_listed_by_name_with_their_devices() {
    let mut world = World::new();
    for (user, device) in [("bob", "laptop"), ("Ann", "laptop"), ("Ann", "phone")] {
        world.device(user, device);
    }
    world.user("carl");
    let gone = world.user("aaron");
    let change = world.change();
    world.store.remove_user(&change, gone.id).unwrap();

    let list = |removed| {
        let listed = world.store.users(removed, &Page::default()).unwrap();
        assert_eq!(listed.next, None);
        listed.items.iter().map(|row| (row.user.name.to_string(), row.devices)).collect::<Vec<_>>()
    };

    let present = [("Ann".to_owned(), 2), ("bob".to_owned(), 1), ("carl".to_owned(), 0)];
    assert_eq!(list(false), present);
    assert_eq!(list(true)[0], ("aaron".to_owned(), 0));
    assert_eq!(list(true)[1..], present);
}

#[test]
fn a_list_of_ten_thousand_users_is_read_page_by_page() {
    let world = World::new();
    let mut names = HashSet::new();
    let filled = world.store.write(Durability::Soon, |sql| {
        for number in 0..10_000u32 {
            // A walk through all numbers in a jumbled order.
            let name = Name::new(&format!("user{}", number * 7_919 % 10_000)).unwrap();
            names.insert(name.to_string());
            let (id, created) = (UserId::random()?, Timestamp::default());
            sql.insert_user(&User {
                id,
                name,
                note: String::new(),
                created,
                suspended: None,
                removed: None,
            })?;
        }
        Ok::<_, StoreFault>(())
    });
    filled.unwrap();
    assert_eq!(names.len(), 10_000);

    let (mut seen, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let listed = world.store.users(false, &Page::after(after, 750)).unwrap();
        assert!(listed.items.len() <= 750);
        seen.extend(listed.items.into_iter().map(|row| row.user.name.to_string()));
        pages += 1;
        after = listed.next;
        if after.is_none() {
            break;
        }
    }

    assert_eq!(pages, 14);
    assert!(seen.is_sorted());
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), names);
    let everything = world.store.users(false, &Page::after(None, u32::MAX)).unwrap();
    assert_eq!(everything.items.len(), 1_000, "a page has a largest size");
}

#[test]
fn a_cursor_from_elsewhere_is_refused() {
    let mut world = World::new();
    world.user("ann");

    for text in ["", "ann", "a/b/c", &"n/".repeat(10_000)] {
        let page = Page::after(Some(Cursor::new(text)), 10);
        assert!(matches!(world.store.users(false, &page), Err(StoreFault::Cursor)), "{text:.10}");
        assert!(matches!(world.store.open_sessions(&page), Err(StoreFault::Cursor)), "{text:.10}");
    }
}
