"""Who can be in the creatures world: which file draws a subject, what it is called, how long it is, and what it can do.

What a subject can do comes from the names of its file's animations: "Armature|Rat_Walk" is a walk.
"""

import re
from typing import NamedTuple

# Folder and kind, then files: greatest extent in metres (0.5), words (the file's name). The first word is the name, the others
# are as true of what is seen. A plant's name is followed by the numbers of its files.
_TABLE = """
animals_pack beast: Alpaca 1.8; Bull 2.6; Cow 2.5; Deer 1.9 deer, doe; Donkey 1.9; Fox 1.2 fox, red fox;
    Horse 2.4 horse, brown horse; Horse_White 2.4 white horse, horse; Husky 1.1 husky, dog, husky dog;
    ShibaInu 1.0 shiba inu, dog, brown dog; Stag 2.3 stag, deer with antlers; Wolf 1.5 wolf, gray wolf
cute_fish_pack fish: Anglerfish 0.6 anglerfish, deep-sea fish; ArmoredCatfish armored catfish, catfish;
    Betta betta, betta fish; BlackLionFish 0.6 black lionfish; Blobfish; BlueGoldfish; BlueTang blue tang, blue fish;
    ButterflyFish butterflyfish; CardinalFish cardinalfish; Clownfish clownfish, orange and white fish;
    CoralGrouper 0.6 coral grouper, grouper; Cowfish; Flatfish; FlowerHorn flowerhorn, flowerhorn fish; GoblinShark 1.2;
    Goldfish; Humphead 0.7 humphead, humphead wrasse; Koi 0.6 koi, koi fish; Lionfish 0.6; MandarinFish mandarinfish;
    MoorishIdol; ParrotFish parrotfish; Piranha; Puffer pufferfish, puffer; RedSnapper 0.6 red snapper, snapper;
    RoyalGramma 0.4; Shark 1.2 small shark, cartoon shark; Sunfish 1.2; Swordfish 1.4; Tang; Tetra 0.4; Tuna 0.9; Turbot;
    YellowTang yellow tang, yellow fish; ZebraClownFish zebra clownfish, black and white fish
fish_pack fish: Dolphin 2.2; Fish1 pink fish, fish; Fish2 blue fish, fish; Fish3 clownfish, orange fish;
    Manta_ray 2.4 manta ray, ray; Shark 3; Whale 8
cyberpunk_pack robot: Enemy_2Legs 1.6 two-legged robot, round robot, robot; Enemy_Large 2.2 big robot, robot
dinosaurs_pack beast: Apatosaurus 14 apatosaurus, long-necked dinosaur, dinosaur; Parasaurolophus 8 parasaurolophus, dinosaur;
    Stegosaurus 8 stegosaurus, dinosaur with plates; Trex 11 tyrannosaurus, t-rex, tyrannosaurus rex;
    Triceratops 8 triceratops, horned dinosaur; Velociraptor 3 velociraptor, raptor
easy_enemies_pack beast: Frog 0.4 frog, green frog; Rat; Snake 0.8; Snake_angry 0.8 angry snake, snake; Spider
kaykit_adventurers person: Knight 1.9; Mage 2.0 mage, wizard; Barbarian 1.9 barbarian, viking; Rogue 1.8 rogue, thief
mech_pack robot: Leela 3.5 white mech, mech, robot; Stan 3.5 green mech, green robot, battle robot
platformer_game_pack beast: Character 1.2 blue bunny, blue rabbit, bunny; Crab 0.6;
    Enemy 0.8 green monster, horned monster, monster; Skull 0.7
easy_enemies_pack flyer: Wasp 0.4
platformer_game_pack flyer: Bee
cyberpunk_pack flyer: Enemy_Flying 1.4 flying robot, drone
single_knight_pack person: KnightCharacter 1.8 man, man in gray, person
tank_pack vehicle: Tank 6
nature_pack plant: BirchTree_1235 6 birch tree, tree; BirchTree_Autumn_1235 6 autumn birch, autumn tree;
    BirchTree_Dead_12345 6 bare birch, bare tree; BirchTree_Dead_Snow_12345 6 bare birch, bare tree;
    BirchTree_Snow_1235 6 snowy birch, snowy tree; CommonTree_345 7 tree, green tree; CommonTree_Autumn_345 7 autumn tree;
    CommonTree_Dead_345 7 bare tree, dead tree; CommonTree_Dead_Snow_345 7 bare tree, dead tree;
    CommonTree_Snow_345 7 snowy tree; BushBerries_12 1.4 bush with berries, bush; Bush_12 1.2 bush, green bush;
    Bush_Snow_12 1.2 snowy bush; CactusFlower_1 1.2 agave, succulent; CactusFlowers_2345 2 flowering cactus, cactus;
    Cactus_12345 2 cactus, green cactus; Corn_12 2 corn plant
nature_pack cover: Flowers 0.6; Grass tuft of grass; Grass_2 tuft of grass; Grass_Short 0.4 tuft of grass;
    Lilypad 0.7 lily pads
"""


class Subject(NamedTuple):
    """One file. Plants of one name are one subject with several files."""

    file: str  # folder/name, without ".glb"
    metres: float  # greatest extent
    words: tuple[str, ...]
    kind: str  # beast, person, robot, fish, flyer, vehicle, plant, cover (plants too low to be the subject)

    @property
    def name(self) -> str:
        return self.words[0]


class Action(NamedTuple):
    """Something to do, which animations show it, and what it is called."""

    pattern: str  # what the animation's name ends with
    pace: float  # 0: stays in place, 1: as fast as its feet, negative: that many body lengths per second
    once: bool  # holds its last pose instead of beginning again
    verbs: tuple[str, ...]


# Name, pace (or "once"), animations, verbs.
_ACTIONS = """
    stand 0 = Idle|Idle_2 = stand still, stand, stand in place
    walk 1 = Walk|Walking|Walking_A = walk, walk, stroll
    run 1 = Gallop|Run|Running_A = run, run, run fast
    drive -0.3 = Tank_Forward = drive, drive, roll
    swim -0.55 = Swim|Swim.001|Swimming_Normal = swim, swim, glide
    dart -1.3 = Swimming_Fast = swim fast, dart, swim quickly
    fly -0.8 = Flying = fly, fly, buzz
    float 0 = Swim|Swim.001|Swimming_Normal|Flying = float in place, hover in the water, float
    leap -1.6 = Gallop_Jump = leap, jump, bound
    jump 0 = (?<!Gallop_)Jump|Jump_toIdle|Jump_ToIdle|Jump_Full_Short = jump, jump, leap up, hop
    eat 0 = Eating = eat, eat from the ground, feed
    attack 0 = (?<!Block_)(?<!sword)Attack|Bite_Front = attack, attack, lunge forward
    butt 0 = Attack_Headbutt = butt with the head, headbutt, strike with the head
    kick 0 = Attack_Kick|Kick = kick, kick out
    punch 0 = (?<!_)Punch = punch, punch, throw a punch
    slash 0 = SwordSlash|1H_Melee_Attack_Slice_Diagonal = slash, attack, strike
    cast 0 = Spellcast_Long = cast a spell, cast a spell, do magic
    spin 0 = 2H_Melee_Attack_Spinning = spin around, spin, whirl around
    fall once = Death|Dead|Death_A = fall over, fall to the ground, collapse
    flop 0 = Out_Of_Water = flop around, flop about, flop up and down
    dance 0 = Dance = dance
    wave 0 = Wave|Hello = wave, wave hello
    cheer 0 = Cheer = cheer, cheer, celebrate
    nod 0 = Yes = nod, nod yes
    shake 0 = No = shake the head, shake the head no
    roll -1 = Roll = roll forward, do a roll, somersault
    duck 0 = Duck = duck, crouch, duck down
    sit once = Sit_Floor_Down = sit down, sit down on the ground
    lie once = Lie_Down = lie down, lie down on the ground
    bow 0 = Pickup|PickUp = bend down, pick something up, reach down
"""


ACTIONS = {
    name: Action(pattern, 0.0 if pace == "once" else float(pace), pace == "once", tuple(verbs.split(", ")))
    for name, pace, pattern, verbs in re.findall(r"(\w+) (\S+) = (\S+) = (.+)", _ACTIONS)
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
    found = {}
    for line in re.split(r"\n(?=\S)", _TABLE.strip()):
        head, entries = line.split(": ")
        folder, kind = head.split()
        for first, *rest in map(str.split, entries.split(";")):
            metres = float(rest.pop(0)) if rest and rest[0][0].isdigit() else 0.5
            words = " ".join(rest) or re.sub("(?<=[a-z])(?=[A-Z])", " ", first).replace("_", " ").lower()
            stem, _, numbers = first.rpartition("_") if kind == "plant" else (first, "", "")
            for file in [f"{folder}/{stem}_{number}" for number in numbers] or [f"{folder}/{first}"]:
                found[file] = Subject(file, metres, tuple(words.split(", ")), kind)
    return found


SUBJECTS = _subjects()
