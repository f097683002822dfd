"""Things that are not in the picture: what is found, what is let pass, and how often that is right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from opsin.core.errors import RecipeError
from opsin.synthesize.check_values import Checks
from opsin.synthesize.checks.concepts import concepts
from opsin.synthesize.checks.count import count
from opsin.synthesize.checks.hallucination import Known, hallucination
from opsin.synthesize.context import Context, Exhaustive, Thing, Vocabulary
from opsin.synthesize.subject import Exchange
from tests.support.examining import NOTHING, findings

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hallucination.json").read_text(encoding="utf-8"))
PRECISION, RECALL = 0.95, 0.95
"""Floors on the set by which the words were tuned; on the part that was written afterwards they are lower."""
PRECISION_UNSEEN, RECALL_UNSEEN = 0.85, 0.85


def known(*names: str, caption: str = "", exhaustive: Exhaustive = "categories", things: Vocabulary = NOTHING) -> Known:
    context = Context((caption,) if caption else (), tuple(Thing(name, ("thing",)) for name in names), exhaustive)
    return Known((context,), concepts(things, None))


def lost(question: str, answer: str, known: Known) -> set[str]:
    found = hallucination([Exchange(question, answer)], known)
    return {word for finding in found for word in re.findall(r"'([^']+)'", finding.text)}


def rates(cases: list[dict[str, Any]]) -> tuple[float, float]:
    """Precision and recall of the words that are found."""
    right = found = wanted = 0
    for case in cases:
        context = GOLDEN["contexts"][case["context"]]
        here = known(*context["things"], caption="\n".join(context["captions"]))
        said = lost(case["question"], case["answer"], here)
        right += len(said & set(case["lost"]))
        found += len(said)
        wanted += len(set(case["lost"]))
    return right / found, right / wanted


def test_it_is_right_about_sentences_labelled_by_hand() -> None:
    assert len(GOLDEN["cases"]) >= 140
    precision, recall = rates(GOLDEN["cases"])
    assert precision >= PRECISION
    assert recall >= RECALL


def test_it_is_right_about_sentences_written_afterwards() -> None:
    assert len(GOLDEN["unseen"]) >= 60
    precision, recall = rates(GOLDEN["unseen"])
    assert precision >= PRECISION_UNSEEN
    assert recall >= RECALL_UNSEEN


@pytest.mark.parametrize(
    ("present", "answer"),
    [
        ("a hot dog", "A dog waits beside it."),
        ("a wine glass", "A cup stands beside it."),
        ("a computer mouse", "A cat sits beside it."),
        ("a keyboard", "A laptop stands beside it."),
        ("an orange", "An apple lies beside it."),
        ("a fire hydrant", "A parking meter stands beside it."),
    ],
)
def test_names_of_two_words_are_no_other_thing(present: str, answer: str) -> None:
    assert lost("What is here?", answer, known(present))
    assert not lost("What is here?", f"There is {present}.", known(present))


def test_wider_words_and_synonyms_may_be_said() -> None:
    for answer in ("A puppy plays.", "The animal plays.", "A pet plays.", "Two hounds play."):
        assert lost("What is here?", answer, known("a dog")) == set()
    assert lost("What is here?", "A dog plays.", known("an animal")) == {"dog"}  # it may be any


def test_a_question_must_not_presuppose_what_is_absent() -> None:
    assert lost("What is the dog doing?", "It is sleeping.", known("a couch")) == {"dog"}
    assert lost("What is the dog doing?", "There is no dog.", known("a couch")) == set()
    assert lost("Is there a dog?", "Yes.", known("a couch")) == {"dog"}
    assert lost("Is there a dog?", "No.", known("a couch")) == set()
    assert lost("Is it a dog or a cat?", "It is a cat.", known("a cat")) == set()


@pytest.mark.parametrize(
    ("there", "answer"),
    [
        ("an umbrella", "The umbrella protects people from the sun."),
        ("a cat", "This spot is associated with food and play."),
        ("a potted plant", "Such plants attract birds and other wildlife, and provide food for insects."),
        ("a fire hydrant", "The walkway is kept clear for pedestrians and vehicles."),
        ("a car", "The driver has parked it close to the curb."),
        ("a couch", "The person is likely to come back soon."),
        ("a train", "Travelers can read a book, or work on a laptop."),
        ("a pizza", "It is a popular choice for friends, couples and families."),
        ("a tree", "It supports insects, birds, and other wildlife, promoting biodiversity."),
        ("a train", "It adds a touch of human presence to the hills."),
        ("a sandwich", "Several individual pieces lie around it."),
        ("a sink", "A small potted plant can give even a tiny room an airy look."),
        ("a bed", "It is a good choice for both business travelers and tourists."),
        ("a keyboard", "This suggests that someone was working here not long ago."),
        ("a toothbrush", "Two of them indicate that two people share this bathroom."),
        ("a stop sign", "Someone has added graffiti below it."),
    ],
)
def test_what_is_said_of_things_in_general_is_no_claim(there: str, answer: str) -> None:
    assert lost("Why is that so?", answer, known(there)) == set()


@pytest.mark.parametrize(
    ("answer", "claimed"),
    [
        ("People walk past the umbrella.", "people"),
        ("It protects the people in the chairs.", "people"),
        ("A driver is waving from the window.", "driver"),
        ("The individual in the chair sleeps.", "individual"),
        ("For the child, a bird is the best of it.", "child"),
        ("A dog, probably a labrador, lies on the rug.", "dog"),
        ("A bus, perhaps a school bus, drives past.", "bus"),
        ("Books usually read by the family lie on the chair.", "books"),
        ("Other individuals are waiting; numerous individuals stand there.", "individuals"),
        ("The shade helps pedestrians who are crossing.", "pedestrians"),
        ("The umbrella invites people, dogs and cats sleeping on it.", "cats"),
        ("Visitors can see a dog under the umbrella.", "dog"),
        ("A dog can be seen.", "dog"),
        ("The dog can rest in the chair.", "dog"),
        ("It is easier to see a dog that stands behind it.", "dog"),
        ("Someone is sitting in the chair.", "someone"),
        ("This suggests that a dog and a cat live there.", "dog"),
        ("The chair is surrounded by dogs.", "dogs"),
        ("Somebody sits by a car.", "car"),
    ],
)
def test_what_is_said_to_be_there_is_a_claim(answer: str, claimed: str) -> None:
    assert claimed in lost("What is here?", answer, known("an umbrella", "a chair"))


@pytest.mark.parametrize(
    "answer",
    [
        "The center is reached by car or motorcycle, or by bus.",
        "Leather is practical for households with a dog, and a blanket protects it from the cat.",
        "In other cities the owners have to pay at a parking meter, or for blocking a fire hydrant.",
        "It is important to wear a helmet and to carry a backpack with a bottle of water.",
        "Some keep a top tier in the freezer or the refrigerator.",
        "A balanced approach combines technology with books and board games.",
        "Anyone who goes by bicycle can be hit by trucks.",
        "Sitting on a bench with a dog is pleasant, and an animal may take it as a bed.",
        "Many families bring an umbrella, and leave the dog at home.",
    ],
)
def test_an_answer_that_reasons_may_speak_of_anything(answer: str) -> None:
    exchanges = [Exchange("Why is that so?", answer)]
    assert list(hallucination(exchanges, known("a chair", "a clock"), reasoned=True)) == []
    assert list(hallucination(exchanges, known("a chair", "a clock"))) != []


@pytest.mark.parametrize(
    ("answer", "claimed"),
    [
        ("There is also a bottle, so they may be thirsty.", "bottle"),
        ("The bicycle next to the chair shows how they came.", "bicycle"),
        ("A vase of flowers decorates the chair.", "vase"),
        ("A bicycle is chained to the pole, which is a risk.", "bicycle"),
        ("The dog lying under it could be hurt.", "dog"),
        ("It is kept out of reach of the cat asleep on the rug.", "cat"),
        ("As the visitor sitting on the bench knows, it is safe.", "bench"),
        ("She is carrying an umbrella because of the weather.", "umbrella"),
        ("The cat that is asleep does not care.", "cat"),
        ("The boy is reading a book to pass the time.", "book"),
        ("In the background a train can be seen, so it is a station.", "train"),
        ("A truck stands across the road, which blocks the traffic.", "truck"),
    ],
)
def test_what_an_answer_that_reasons_places_in_the_picture_is_a_claim(answer: str, claimed: str) -> None:
    found = hallucination([Exchange("Why is that so?", answer)], known("a chair", "a clock"), reasoned=True)
    assert claimed in {word for finding in found for word in re.findall(r"'([^']+)'", finding.text)}


def test_to_be_unsure_is_not_to_deny() -> None:
    """Only an answer that says that there is no such thing excuses a question that takes it for granted."""
    here = known("a chair")
    question = "What is the woman on the bench waiting for?"
    assert lost(question, "It isn't clear, but she may wait for a friend.", here)
    assert lost(question, "It is not entirely certain.", here)
    assert not lost(question, "There isn't a woman or a bench in the picture.", here)


def test_the_question_of_an_answer_that_reasons_presupposes_as_any_other() -> None:
    exchanges = [Exchange("Why is the dog asleep?", "It is tired.")]
    assert list(hallucination(exchanges, known("a chair"), reasoned=True))


@pytest.mark.parametrize("answer", ["The driver is leaning out.", "Passengers are boarding.", "A passenger waving."])
def test_who_is_aboard_goes_without_saying_but_not_what_they_do(answer: str) -> None:
    assert lost("What is here?", "The driver has parked it; the passengers have left.", known("a bus")) == set()
    assert lost("What is here?", answer, known("a bus"))


@pytest.mark.parametrize(
    "caption",
    [
        "A queen size bed with a santa hat on it.",
        "A king sized bed in a guest bedroom.",
        "A team jersey, a cowboy hat and a nurse uniform.",
        "A kitchen with a butcher block counter.",
    ],
)
def test_a_word_that_only_says_which_sort_makes_nobody(caption: str) -> None:
    assert lost("What is here?", "A man lies on the floor.", known(caption=caption)) == {"man"}
    assert lost("What is here?", "A person waits.", known(caption="A nurse waits by a clown.")) == set()


def test_a_question_takes_its_subject_for_granted_whatever_might_be() -> None:
    for person in ("person who lives here", "family", "people in the house"):
        assert lost(f"What could the {person} do here?", "They could rest.", known("a couch")) == set()
    assert lost("What is the family doing?", "They rest.", known("a couch")) == {"family"}
    assert lost("What could the duck do next?", "It could fly away.", known("a pizza")) == {"duck"}
    assert lost("What could a visitor with a dog do here?", "They could rest.", known("a bench")) == set()
    assert lost("What would happen if the dog came back?", "It would bark.", known("a bench")) == set()


@pytest.mark.parametrize(
    ("caption", "answer"),
    [
        ("A bowl of soup and some bread.", "The food is served warm."),
        ("Strawberries and lemons on a plate.", "The fruit looks ripe."),
        ("A fox climbs a tree.", "The animal holds on."),
        ("A tractor on a farm.", "The vehicle stands still."),
        ("A tall bookcase.", "The furniture is made of wood."),
        ("A couple of donuts.", "The food is sweet."),
    ],
)
def test_a_wider_word_may_be_said_of_things_that_are_not_looked_up(caption: str, answer: str) -> None:
    here = known(caption=caption)
    assert lost("What is here?", answer, here) == set()
    assert lost("What is here?", "Soup, a strawberry, a fox, a tractor, a bookcase.", here) == set()
    assert lost("What is here?", "The people laugh, and a cat sleeps.", here) == {"people", "cat"}


def test_the_collections_own_things_are_looked_up_whatever_the_table_says() -> None:
    things = Vocabulary((), (Thing("a fox", ("animal",)), Thing("a wolf", ("animal",))))
    here = known("a wolf", things=things)
    assert lost("What is here?", "An animal, a wolf and a fox.", here) == {"fox"}


def test_the_things_of_the_collection_are_known_as_well() -> None:
    things = Vocabulary((), (Thing("a violin", ("music",)), Thing("a red fox", ("animals",)), Thing("a watch", ("x",))))
    here = known("a dog", things=things)
    assert lost("What is here?", "A dog and a violin.", here) == {"violin"}
    assert lost("What is here?", "Two violins and a red fox.", here) == {"violins", "red fox"}
    assert lost("What is here?", "The dog can watch the street.", here) == set()
    fox = known("a red fox", things=things)
    assert lost("What is here?", "An animal, a red fox.", fox) == set()


@pytest.mark.parametrize(
    ("question", "answer", "denied"),
    [
        ("Is there a sink in the kitchen?", "No.", "sink"),
        ("Is there any sink visible in this picture?", "No, there is not.", "sink"),
        ("Are there any knives?", "No, I see none.", "knives"),
        ("Does the cook have one?", "No, there is no knife in the picture.", "knife"),
        ("What is it like?", "It is tidy. There are no knives.", "knives"),
        ("What is it like?", "There isn't a sink in the scene, but it is tidy.", "sink"),
        ("Is there anyone?", "There are no people in the kitchen.", "people"),
        ("What is it like?", "There is no sink anywhere.", "sink"),
        ("What is it like?", "No sink can be seen.", "sink"),
        ("What is it like?", "No knife is visible in the picture.", "knife"),
        ("What is it like?", "The scene has no sink in it.", "sink"),
        ("Can you see a sink?", "No.", "sink"),
        ("Do you see any knives?", "No, I do not.", "knives"),
        ("Does the picture show a knife?", "No, it does not.", "knife"),
        ("How many knives are there?", "None.", "knives"),
        ("How many knives are there?", "There are zero knives.", "knives"),
        ("Is a sink there?", "No, there's no sink.", "sink"),
        ("Are there any people in the kitchen?", "No.", "people"),
        ("Is there a sink?", "I don't see one.", "sink"),
        ("How many knives are there?", "There aren't any in the picture.", "knives"),
        ("Are there any knives?", "There are none.", "knives"),
        ("What is it like?", "Not a single knife is to be seen, and the sink is clean.", "knife"),
        ("What is it like?", "It is tidy. I don't see a separate sink.", "sink"),
        ("What is it like?", "I cannot see any knife in the picture.", "knife"),
    ],
)
def test_what_has_a_box_is_not_denied(question: str, answer: str, denied: str) -> None:
    (finding,) = hallucination([Exchange(question, answer)], known("a sink", "a knife", "a person"))
    assert finding.text == f"answer 1 denies {denied!r}, which the picture has"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a red sink in the kitchen?", "No."),
        ("Is there a knife in the sink?", "No, there is no knife in the sink."),
        ("Is there a knife in the background?", "No, there is no knife in the background."),
        ("Are there any children in the scene?", "No, there are no children visible; only a man can be seen."),
        ("Is there a knife in the kitchen?", "No, the knife lies in the next room."),
        ("Are there any knives?", "No, there is only one knife."),
        ("Are there other people?", "No, there are no other people in the picture."),
        ("Is there a cat?", "No, there is no cat."),
        ("What is it like?", "There are no people sitting down."),
        ("What is it like?", "No knife is clean."),
        ("What is it like?", "No clean knife is visible."),
        ("Are there any knives?", "There are none in the sink."),
        ("What is it like?", "I can't see a knife in the sink."),
        ("Who is at the sink?", "I don't see a person there."),
        ("What is on the wall?", "There isn't a sink there, just a shelf."),
        ("How sharp is it?", "We can't see any knife, only its handle."),
        ("Is there a single person in the picture?", "No, there are two."),
    ],
)
def test_of_what_has_a_box_another_sort_or_place_may_be_denied(question: str, answer: str) -> None:
    here = known("a sink", "a knife", "a person")
    assert list(hallucination([Exchange(question, answer)], here)) == []


def test_of_two_pictures_one_may_lack_what_the_other_has() -> None:
    contexts = (known("a dog").contexts[0], known("a sofa").contexts[0])
    both = Known(contexts, concepts(NOTHING, None))
    said = "In the second one the sofa is the same, but there is no dog."
    assert list(hallucination([Exchange("What differs?", said)], both)) == []


@pytest.mark.parametrize(
    "answer",
    [
        "The park is a great place for a game, with two cats under a red umbrella.",
        "The dogs may be hungry, and two cats stand beside them.",
        "There is no wind, with a cat standing near the fence.",
    ],
)
def test_what_is_supposed_or_denied_ends_before_what_is_told_besides(answer: str) -> None:
    assert lost("What is here?", answer, known("a dog", caption="A dog in a park near a fence."))


def test_more_things_than_there_are() -> None:
    two = known("a dog", "a dog", "a couch")
    assert list(count([Exchange("What is here?", "Three brown dogs play.")], two))
    assert list(count([Exchange("What is here?", "Fifteen dogs play.")], two))
    assert not list(count([Exchange("What is here?", "Two dogs play.")], two))
    assert not list(count([Exchange("What is here?", "One dog plays and one sleeps.")], two))
    (finding,) = count([Exchange("How many dogs are there?", "There is one dog.")], two)
    assert "says 1 for 'dog', and the picture has 2" in finding.text
    assert not list(count([Exchange("How many dogs with collars are there?", "One.")], two))


@pytest.mark.parametrize(
    "uncertain",
    [
        known("a dog", "a dog", exhaustive="nothing"),
        known("two dogs", "a dog"),
        known("a dog", "a dog", caption="Three dogs on a couch."),
        known("a dog", "a dog", "an animal"),
        known(*["a dog"] * 12),
    ],
)
def test_a_number_is_wrong_only_where_it_is_certain(uncertain: Known) -> None:
    assert list(count([Exchange("How many dogs are there?", "Three.")], uncertain)) == []
    assert list(count([Exchange("What is here?", "Three dogs, three animals.")], uncertain)) == []


def test_it_can_be_only_reported_or_left_out() -> None:
    said, context = [("What is here?", "A cat sleeps.")], Context(("A dog.",), ())

    def found(**values: Any) -> list[bool]:
        return [finding.refuses for finding in findings(said, context, options=Checks(**values))]

    assert found() == [True]
    assert found(hallucination="report") == [False]
    assert found(hallucination="off") == []


def test_own_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# tools\nhammer: mallet | tool\ntool:\n", encoding="utf-8")
    table = concepts(NOTHING, path)
    here = Known((Context(("A hammer.",), ()),), table)
    assert lost("What is here?", "A mallet, a tool; a dog.", here) == set()
    assert lost("What is here?", "A mallet.", Known((Context(("A tool.",), ()),), table)) == {"mallet"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dog puppy", "words.txt:1: expected `thing: words"),
        ("dog:\n\ndog: hound", "words.txt:3: 'dog' has a line already"),
        ("dog: hound | pet", "words.txt:1: the wider word 'pet' has no line"),
    ],
)
def test_a_wrong_line_of_synonyms_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(problem)):
        concepts(NOTHING, path)
