"""Who can be in the creatures world: which file draws a subject, what it is called, how long it is, and what it can do.

What a subject can do comes from the names of its file's animations: "Armature|Rat_Walk" is a walk.
"""

import re
from dataclasses import dataclass

# A line of one word or two is a folder and the kind of all in it; others are file, greatest extent in metres, words.
# A plant's name is followed by the numbers of its files. The first word is the name; the others are as true of what is seen.
_TABLE = """
animals_pack beast
Alpaca 1.8 alpaca
Bull 2.6 bull
Cow 2.5 cow
Deer 1.9 deer, doe
Donkey 1.9 donkey
Fox 1.2 fox, red fox
Horse 2.4 horse, brown horse
Horse_White 2.4 white horse, horse
Husky 1.1 husky, dog, husky dog
ShibaInu 1.0 shiba inu, dog, brown dog
Stag 2.3 stag, deer with antlers
Wolf 1.5 wolf, gray wolf
cute_fish_pack fish
Anglerfish 0.6 anglerfish, deep-sea fish
ArmoredCatfish 0.5 armored catfish, catfish
Betta 0.5 betta, betta fish
BlackLionFish 0.6 black lionfish
Blobfish 0.5 blobfish
BlueGoldfish 0.5 blue goldfish
BlueTang 0.5 blue tang, blue fish
ButterflyFish 0.5 butterflyfish
CardinalFish 0.5 cardinalfish
Clownfish 0.5 clownfish, orange and white fish
CoralGrouper 0.6 coral grouper, grouper
Cowfish 0.5 cowfish
Flatfish 0.5 flatfish
FlowerHorn 0.5 flowerhorn, flowerhorn fish
GoblinShark 1.2 goblin shark
Goldfish 0.5 goldfish
Humphead 0.7 humphead, humphead wrasse
Koi 0.6 koi, koi fish
Lionfish 0.6 lionfish
MandarinFish 0.5 mandarinfish
MoorishIdol 0.5 moorish idol
ParrotFish 0.5 parrotfish
Piranha 0.5 piranha
Puffer 0.5 pufferfish, puffer
RedSnapper 0.6 red snapper, snapper
RoyalGramma 0.4 royal gramma
Shark 1.2 small shark, cartoon shark
Sunfish 1.2 sunfish
Swordfish 1.4 swordfish
Tang 0.5 tang
Tetra 0.4 tetra
Tuna 0.9 tuna
Turbot 0.5 turbot
YellowTang 0.5 yellow tang, yellow fish
ZebraClownFish 0.5 zebra clownfish, black and white fish
fish_pack fish
Dolphin 2.2 dolphin
Fish1 0.5 pink fish, fish
Fish2 0.5 blue fish, fish
Fish3 0.5 clownfish, orange fish
Manta_ray 2.4 manta ray, ray
Shark 3 shark
Whale 8 whale
cyberpunk_pack robot
Enemy_2Legs 1.6 two-legged robot, round robot, robot
Enemy_Large 2.2 big robot, robot
dinosaurs_pack beast
Apatosaurus 14 apatosaurus, long-necked dinosaur, dinosaur
Parasaurolophus 8 parasaurolophus, dinosaur
Stegosaurus 8 stegosaurus, dinosaur with plates
Trex 11 tyrannosaurus, t-rex, tyrannosaurus rex
Triceratops 8 triceratops, horned dinosaur
Velociraptor 3 velociraptor, raptor
easy_enemies_pack beast
Frog 0.4 frog, green frog
Rat 0.5 rat
Snake 0.8 snake
Snake_angry 0.8 angry snake, snake
Spider 0.5 spider
kaykit_adventurers person
Knight 1.9 knight
Mage 2.0 mage, wizard
Barbarian 1.9 barbarian, viking
Rogue 1.8 rogue, thief
mech_pack robot
Leela 3.5 white mech, mech, robot
Stan 3.5 green mech, green robot, battle robot
platformer_game_pack beast
Character 1.2 blue bunny, blue rabbit, bunny
Crab 0.6 crab
Enemy 0.8 green monster, horned monster, monster
Skull 0.7 skull
easy_enemies_pack flyer
Wasp 0.4 wasp
platformer_game_pack flyer
Bee 0.5 bee
cyberpunk_pack flyer
Enemy_Flying 1.4 flying robot, drone
single_knight_pack person
KnightCharacter 1.8 man, man in gray, person
tank_pack vehicle
Tank 6 tank
nature_pack plant
BirchTree_1235 6 birch tree, tree
BirchTree_Autumn_1235 6 autumn birch, autumn tree
BirchTree_Dead_12345 6 bare birch, bare tree
BirchTree_Dead_Snow_12345 6 bare birch, bare tree
BirchTree_Snow_1235 6 snowy birch, snowy tree
CommonTree_345 7 tree, green tree
CommonTree_Autumn_345 7 autumn tree
CommonTree_Dead_345 7 bare tree, dead tree
CommonTree_Dead_Snow_345 7 bare tree, dead tree
CommonTree_Snow_345 7 snowy tree
BushBerries_12 1.4 bush with berries, bush
Bush_12 1.2 bush, green bush
Bush_Snow_12 1.2 snowy bush
CactusFlower_1 1.2 agave, succulent
CactusFlowers_2345 2 flowering cactus, cactus
Cactus_12345 2 cactus, green cactus
Corn_12 2 corn plant
nature_pack cover
Flowers 0.6 flowers
Grass 0.5 tuft of grass
Grass_2 0.5 tuft of grass
Grass_Short 0.4 tuft of grass
Lilypad 0.7 lily pads
"""


@dataclass(frozen=True)
class Subject:
    """One file. Plants of one name are one subject with several files."""

    file: str  # folder/name, without ".glb"
    metres: float  # greatest extent
    words: tuple[str, ...]
    kind: str  # beast, person, robot, fish, flyer, vehicle, plant, cover (plants too low to be the subject)

    @property
    def name(self) -> str:
        return self.words[0]


@dataclass(frozen=True)
class Action:
    """Something to do, and which animations show it."""

    pattern: str  # what the animation's name ends with
    pace: float = 0.0  # 0: stays in place, 1: as fast as its feet, negative: that many body lengths per second
    once: bool = False  # holds its last pose instead of beginning again


ACTIONS = {
    "stand": Action("Idle|Idle_2"),
    "walk": Action("Walk|Walking|Walking_A", 1.0),
    "run": Action("Gallop|Run|Running_A", 1.0),
    "drive": Action("Tank_Forward", -0.3),
    "swim": Action("Swim|Swim.001|Swimming_Normal", -0.55),
    "dart": Action("Swimming_Fast", -1.3),
    "fly": Action("Flying", -0.8),
    "float": Action("Swim|Swim.001|Swimming_Normal|Flying"),
    "leap": Action("Gallop_Jump", -1.6),
    "jump": Action("(?<!Gallop_)Jump|Jump_toIdle|Jump_ToIdle|Jump_Full_Short"),
    "eat": Action("Eating"),
    "attack": Action("(?<!Block_)(?<!sword)Attack|Bite_Front"),
    "butt": Action("Attack_Headbutt"),
    "kick": Action("Attack_Kick|Kick"),
    "punch": Action("(?<!_)Punch"),
    "slash": Action("SwordSlash|1H_Melee_Attack_Slice_Diagonal"),
    "cast": Action("Spellcast_Long"),
    "spin": Action("2H_Melee_Attack_Spinning"),
    "fall": Action("Death|Dead|Death_A", once=True),
    "flop": Action("Out_Of_Water"),
    "dance": Action("Dance"),
    "wave": Action("Wave|Hello"),
    "cheer": Action("Cheer"),
    "nod": Action("Yes"),
    "shake": Action("No"),
    "roll": Action("Roll", -1.0),
    "duck": Action("Duck"),
    "sit": Action("Sit_Floor_Down", once=True),
    "lie": Action("Lie_Down", once=True),
    "bow": Action("Pickup|PickUp"),
}
# Those that walk or run without feet, in body lengths per second.
GLIDING = {"snake": 0.35, "angry snake": 0.35, "flying robot": 0.7}
_PATTERNS = {action: re.compile(rf"(?:.*\|(?:[A-Za-z]+_)?)?(?:{rule.pattern})") for action, rule in ACTIONS.items()}


def actions(animation: str) -> tuple[str, ...]:
    """What an animation of this name shows."""
    return tuple(action for action, pattern in _PATTERNS.items() if pattern.fullmatch(animation))


_HIDDEN = re.compile("Offhand|Badge|Rectangle|Spike|2H_(Sword|Axe|Crossbow)|Mug|Spellbook|1H_(Wand|Crossbow)|Throwable")


def is_hidden(node: str) -> bool:
    """Whether a part of a model is left out: some files hold every weapon at once."""
    return bool(_HIDDEN.match(node))


def _subjects() -> dict[str, Subject]:
    found: list[Subject] = []
    folder = kind = ""
    for line in _TABLE.strip().splitlines():
        first, second, *rest = line.split(maxsplit=2)
        if not rest:
            folder, kind = first, second
            continue
        stem, _, numbers = first.rpartition("_") if kind == "plant" else (first, "", "")
        for number in numbers or ("",):
            file = f"{folder}/{stem}" + (f"_{number}" if number else "")
            found.append(Subject(file, float(second), tuple(rest[0].split(", ")), kind))
    return {subject.file: subject for subject in found}


SUBJECTS = _subjects()
