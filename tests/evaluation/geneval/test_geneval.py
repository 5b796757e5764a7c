"""GenEval's rules on boxes that are known, on rendered scenes, and with CLIP for colours."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unifl.data.suites import Entry, Suite, Wanted
from unifl.errors import UserError
from unifl.evaluation.geneval import ClipColors, GenEval, PaletteColors, Thresholds, judge_picture, relations
from unifl.evaluation.geneval.colors import cut_out
from unifl.feedback.detectors import Detection, Detector
from unifl.world.annotated import SceneImages
from unifl.world.renderer import PALETTE
from unifl.world.scenes import SHAPES

LEFT, RIGHT, MIDDLE = (0.0, 20.0, 20.0, 40.0), (60.0, 20.0, 80.0, 40.0), (30.0, 20.0, 50.0, 40.0)


def seen(kind, box=LEFT, score=0.95):
    return Detection(kind, score, box)


def verdict(detections, *include, exclude=(), tag="two_object", colors=None, thresholds=None):
    entry = Entry("a photo", tag, tuple(include), tuple(exclude))
    return judge_picture(
        detections,
        entry,
        colors or (lambda objects, kind: ["red"] * len(objects)),
        thresholds or Thresholds(),
    )


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), {"left of"}),
        ((90, 0, 100, 10), {"right of"}),
        ((45, -60, 55, -50), {"above"}),
        ((45, 50, 55, 60), {"below"}),
        ((0, 45, 10, 55), {"left of", "below"}),
        ((46, 1, 56, 11), set()),  # nearer than a tenth of both sides along each axis
        ((45, 0, 55, 10), set()),
        ((48.5, 0, 58.5, 10), {"right of"} if 3.5 - 2 > 0.5 * 3.5 else set()),  # beyond, by less than half
        ((50, 0, 60, 10), {"right of"}),  # 5 - 2 is more than half of 5
    ],
)
def test_places_follow_the_published_rule(box, expected):
    assert relations(tuple(map(float, box)), (45.0, 0.0, 55.0, 10.0)) == expected


def test_places_are_opposite_seen_from_the_other_side():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    generator = torch.Generator().manual_seed(0)
    some = 0
    for _ in range(300):
        corners = 100 * torch.rand(2, 2, 2, generator=generator)
        a, b = (
            tuple(torch.cat([one.min(0).values, one.max(0).values]).tolist()) for one in corners.unbind(0)
        )
        there, back = relations(a, b), relations(b, a)
        assert {opposite[name] for name in there} == back
        some += bool(there)
    assert 100 < some < 300


def test_objects_must_be_there_surely_enough():
    assert verdict([seen("cat")], Wanted("cat", 1)).correct
    assert not verdict([seen("cat", score=0.3)], Wanted("cat", 1)).correct
    assert not verdict([seen("dog")], Wanted("cat", 1)).correct
    wrong = verdict([seen("cat")], Wanted("cat", 1), Wanted("dog", 1))
    assert wrong.reasons == ("1 of dog were asked for, 0 found",)
    assert verdict([seen("cat"), seen("dog"), seen("bird")], Wanted("cat", 1), Wanted("dog", 1)).correct


def test_counting_is_exact_at_a_threshold_of_its_own():
    def counted(*scores):
        found = [seen("cat", (10.0 * i, 0.0, 10.0 * i + 8, 8.0), score) for i, score in enumerate(scores)]
        return verdict(found, Wanted("cat", 2), exclude=[Wanted("cat", 3)], tag="counting").correct

    assert counted(0.95, 0.92) and counted(0.95, 0.92, 0.9)
    assert not counted(0.95, 0.6) and not counted(0.95, 0.92, 0.91)
    # any other task takes the lower threshold
    assert verdict([seen("cat"), seen("cat", score=0.6)], Wanted("cat", 2)).correct


def test_colours_are_those_of_the_surest_objects():
    def colors(objects, kind):
        return ["red" if one.box == LEFT else "blue" for one in objects]

    both = [seen("cup", LEFT, 0.9), seen("cup", RIGHT, 0.8)]
    assert verdict(both, Wanted("cup", 1, "red"), colors=colors).correct
    wrong = verdict(both, Wanted("cup", 1, "blue"), colors=colors)
    assert wrong.reasons == ("cup was asked for in blue, found in red",)
    assert not verdict(both, Wanted("cup", 2, "red"), colors=colors).correct


def test_places_are_of_the_earlier_clause():
    found = [seen("cat", LEFT), seen("dog", RIGHT)]
    dog, cat = Wanted("dog", 1), Wanted("cat", 1, None, ("left of", 0))
    assert verdict(found, dog, cat, tag="position").correct
    wrong = verdict(found, dog, replace(cat, position=("right of", 0)), tag="position")
    assert wrong.reasons == ("cat should be right of dog, and is left of it",)
    assert verdict(found[:1], dog, cat).reasons[1] == "nothing for cat to be left of"
    # all of several objects lie there, not some
    two = [seen("cat", LEFT), seen("cat", RIGHT, 0.8), seen("dog", MIDDLE)]
    assert not verdict(two, dog, replace(cat, count=2)).correct
    assert verdict(two, dog, cat).correct  # the surest alone


class SceneDetector:
    """Knows rendered scenes by their pictures: their masks, with what they show."""

    labels = frozenset(SHAPES)

    def __init__(self, scenes):
        self.scenes = scenes

    def __call__(self, images, wanted):
        found = []
        for image, labels in zip(images, wanted, strict=True):
            place = int((self.scenes.images - image).abs().flatten(1).sum(1).argmin())
            sample = self.scenes[place]
            pairs = zip(sample.labels.tolist(), sample.masks, strict=True)
            every = [Detection(SHAPES[label], 0.99, box_of(mask), mask) for label, mask in pairs]
            found.append([one for one in every if one.label in labels])
        return found


def box_of(mask):
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))


def scene_suite(scenes):
    """What each rendered scene shows, as a suite of prompts with colours."""
    entries = []
    for place in range(len(scenes)):
        objects = [placed.thing for placed in scenes.scenes[place].objects]
        wanted = []
        for shape in dict.fromkeys(thing.shape for thing in objects):
            of_shape = [thing for thing in objects if thing.shape == shape]
            color = of_shape[0].color if len({thing.color for thing in of_shape}) == 1 else None
            wanted.append(Wanted(shape, len(of_shape), color))
        entries.append(Entry(f"{place}: {scenes.prompts[place]}", "color_attr", tuple(wanted)))
    return Suite("geneval", tuple(entries))


def test_rendered_scenes_are_right_and_with_another_colour_wrong():
    every = SceneImages.sample(160, seed=5, min_quality=0.8)
    shown = [i for i, s in enumerate(every.scenes) if len(every[i].masks) == len(s.objects)]  # none is hidden
    flat = [i for i in shown if every.scenes[i].description.style == "flat"]
    scenes = SceneImages([every.scenes[i] for i in flat])
    assert len(scenes) > 15
    suite = scene_suite(scenes)
    geneval = GenEval(suite, SceneDetector(scenes), PaletteColors(PALETTE))
    assert isinstance(geneval.detector, Detector)
    assert geneval(scenes.images, suite.prompts).mean() == 1.0
    turned = list(PALETTE)[1:] + list(PALETTE)[:1]
    another = dict(zip(PALETTE, turned, strict=True))
    wrong = [
        replace(
            entry, include=tuple(replace(one, color=another[one.color or "red"]) for one in entry.include)
        )
        for entry in suite.entries
    ]
    false = GenEval(Suite("geneval", tuple(wrong)), SceneDetector(scenes), PaletteColors(PALETTE))
    assert false(scenes.images, suite.prompts).mean() == 0.0
    assert all("was asked for in" in one.reasons[0] for one in false.verdicts(scenes.images, suite.prompts))


class NoDetector:
    labels = frozenset({"keyboard", "cat"})

    def __call__(self, images, wanted):
        return [[Detection(label, 0.9, LEFT) for label in labels] for labels in wanted]


GENEVAL = """person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign
parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase
frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass
cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant
bed dining_table toilet tv laptop computer_mouse tv_remote computer_keyboard cell_phone microwave oven toaster sink
refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"""
COCO = (
    GENEVAL.replace("computer_mouse", "mouse")
    .replace("tv_remote", "remote")
    .replace("computer_keyboard", "keyboard")
)
VOC = (
    COCO.replace("motorcycle", "motorbike")
    .replace("airplane", "aeroplane")
    .replace("couch", "sofa")
    .replace("potted_plant", "pottedplant")
    .replace("dining_table", "diningtable")
    .replace(" tv ", " tvmonitor ")
)


@pytest.mark.parametrize("published", [COCO, VOC])
def test_all_classes_of_geneval_are_found_by_detectors_with_either_list_of_labels(published):
    kinds, names = ([name.replace("_", " ") for name in text.split()] for text in (GENEVAL, published))
    assert len(kinds) == len(set(names)) == 80

    class Detector:
        labels = frozenset(names)

        def __call__(self, images, wanted):
            return [[Detection(label, 0.9, LEFT) for label in labels] for labels in wanted]

    entries = tuple(Entry(f"a photo of a {kind}", "single_object", (Wanted(kind, 1),)) for kind in kinds)
    geneval = GenEval(Suite("geneval", entries), Detector(), PaletteColors({"red": (1.0, 0.0, 0.0)}))
    assert geneval(torch.zeros(80, 3, 8, 8), [one.prompt for one in entries]).all()


def opened(*entries):
    return GenEval(Suite("geneval", entries), NoDetector(), PaletteColors({"red": (1.0, 0.0, 0.0)}))


def test_classes_of_geneval_are_found_under_the_names_of_coco():
    geneval = opened(Entry("a keyboard", "single_object", (Wanted("computer keyboard", 1, "red"),)))
    assert geneval(torch.zeros(1, 3, 50, 50), ["a keyboard"]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("a cat")], "says nothing of what a detector should find"),
        ([Entry("x", "t", (Wanted("cta", 1),))], "knows no 'cta', which 'x' asks for; did you mean 'cat'"),
        ([Entry("x", "t", (Wanted("cat", 1, "mauve"),))], "asks for 'mauve', and colours are read among red"),
        (
            [Entry("x", "t", (Wanted("cat", 1),)), Entry("x", "t", (Wanted("cat", 2),))],
            "'x' is there with two meanings",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_drawn(entries, message):
    with pytest.raises(UserError, match=message):
        opened(*entries)


def test_an_unknown_prompt_is_refused():
    geneval = opened(Entry("a cat", "single_object", (Wanted("cat", 1),)))
    with pytest.raises(UserError, match="'a dog' is not in the suite"):
        geneval(torch.zeros(1, 3, 8, 8), ["a dog"])


def test_what_is_not_the_object_is_grey():
    image = torch.rand(3, 20, 30)
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:9, 10:16] = True
    mask[5, 10] = False
    shown = cut_out(image, Detection("cat", 0.9, (10.0, 5.0, 16.0, 9.0), mask))
    assert shown.shape == (3, 4, 6) and (shown[:, 0, 0] == 0.6).all()
    torch.testing.assert_close(shown[:, 1:], image[:, 6:9, 10:16])
    assert cut_out(image, Detection("cat", 0.9, (29.7, 19.8, 30.0, 20.0))).shape == (3, 1, 1)


def test_clip_reads_a_colour_as_zero_shot_classification_does(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "feedback" / "scorers"))
    from tiny_scorers import clip

    from unifl.data.suites.geneval import COLORS
    from unifl.feedback.scorers import open_scorer

    clip(tmp_path)
    network = open_scorer("clipscore", weights=str(tmp_path), base=str(tmp_path)).network
    network.prefix = ""
    images = torch.rand(6, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    objects = [Detection("cup", 0.9, (4.0, 3.0, 50.0, 33.0))]
    found = [ClipColors(network)(image, objects, "cup")[0] for image in images]
    expected = []
    for image in images:
        picture = network.embed_images(image[None, :, 3:33, 4:50])
        scores = []
        for color in COLORS:
            texts = [
                f"a photo of a {color} cup",
                f"a photo of a {color}-colored cup",
                f"a photo of a {color} object",
            ]
            mean = network.embed_texts(texts).mean(0)
            scores.append(float((picture @ (mean / mean.norm())).squeeze()))
        expected.append(COLORS[max(range(10), key=scores.__getitem__)])
    assert found == expected
