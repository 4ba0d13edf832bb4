//! In which order layers are sealed.

use perennial_core::id::LayerId;
use perennial_core::sealed::order::plan_seal;

fn id(name: u8) -> LayerId {
    LayerId::from_random([0, 0, 0, 0, 0, 0, 0, name])
}

fn stack(names: &str) -> Vec<LayerId> {
    names.bytes().map(id).collect()
}

/// Shows a plan as `layer/below`, in order.
fn planned(stacks: &[&str], sealed: &str) -> String {
    let stacks: Vec<Vec<LayerId>> = stacks.iter().map(|names| stack(names)).collect();
    let name = |layer: &LayerId| {
        ('a'..='z')
            .find(|name| u8::try_from(*name).is_ok_and(|name| id(name) == *layer))
            .expect("layers have letters for names")
    };
    let steps = plan_seal(&stacks, &|layer| !stack(sealed).contains(layer));
    let texts =
        steps.iter().map(|step| format!("{}/{}", name(&step.layer), step.below.iter().map(name).collect::<String>()));
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn layers_are_sealed_after_those_below_them_each_once() {
    let table: [(&[&str], &str, &str); 9] = [
        (&[], "", ""),
        (&["a"], "", "a/"),
        (&["a"], "a", ""),
        (&["cba"], "", "a/ b/a c/ba"),
        (&["cba"], "a", "b/a c/ba"),
        (&["cba"], "b", "a/ c/ba"),
        (&["ba", "cba", "dba"], "", "a/ b/a c/ba d/ba"),
        // c lies on ba and on xa: whether its whiteouts hide something depends on who looks.
        (&["cba", "cxa"], "", "a/ b/a x/a"),
        (&["dcba", "dcxa"], "a", "b/a x/a"),
    ];
    for (stacks, sealed, expected) in table {
        assert_eq!(planned(stacks, sealed), expected, "{stacks:?} with {sealed:?} sealed");
    }
}
