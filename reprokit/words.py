"""The words of the synthetic world: genres and what stands for them, names, review phrases."""

from __future__ import annotations

# film genre; book genre; restaurant type; adjectives; nouns; tags; dishes
GENRE_TABLE = """
Action; Spy Fiction; Steakhouse; furious armed explosive; strike convoy bullet squad;
    car chases, gun fights, stunts; ribeye, brisket
Adventure; Travel Writing; Seafood; uncharted stormy hidden; voyage island compass summit;
    treasure hunts, jungle treks, sea journeys; lobster, oysters
Animation; Graphic Novels; Ramen; painted bouncing cartoon; robot puppet doodle balloon;
    drawn heroes, talking toys, slapstick gags; gyoza, noodles
Children's; Picture Books; Ice Cream; tiny cuddly playful; puppy kitten schoolbus sandbox;
    school pranks, animal friends, bedtime songs; sundaes, waffles
Comedy; Humour; Diner; awkward silly goofy; roommate wedding vacation uncle;
    witty banter, running jokes, mix-ups; pancakes, meatloaf
Crime; Detective Stories; Italian; crooked stolen ruthless; heist gangster alibi vault;
    bank robberies, mob families, police raids; lasagne, risotto
Documentary; Popular Science; Vegetarian; untold true factual; history planet archive whale;
    real interviews, field footage, science facts; falafel, beet salad
Drama; Literary Fiction; French; broken tender honest; father daughter promise winter;
    family conflicts, moral choices, farewells; confit, onion soup
Fantasy; Epic Fantasy; Moroccan; enchanted cursed winged; dragon wizard kingdom sword;
    magic duels, elf lore, royal quests; tagine, couscous
Film-Noir; Hardboiled; Cocktail; smoky cynical midnight; alley cigarette nightclub blonde;
    voice-overs, femmes fatales, night streets; negronis, olives
Horror; Gothic Tales; Barbecue; haunted bloody undead; crypt zombie cellar vampire;
    jump scares, ghost attacks, gory scenes; ribs, hot links
Musical; Music and Theatre; Tapas; singing dancing jazzy; chorus piano spotlight ballroom;
    dance numbers, love duets, show tunes; croquettes, chorizo
Mystery; Whodunits; Thai; missing secret unsolved; clue letter manor key;
    red herrings, locked rooms, clever clues; green curry, pad thai
Romance; Love Stories; Dessert; beloved passionate kissed; sweetheart honeymoon bouquet valentine;
    first dates, love letters, reunions; truffles, soufflé
Sci-Fi; Speculative Fiction; Fusion; silent orbital quantum; starship android nebula reactor;
    space battles, time travel, alien worlds; sushi tacos, bao
Thriller; Suspense; Indian; paranoid hunted lethal; hostage conspiracy stalker traitor;
    plot twists, close escapes, double agents; samosas, biryani
War; Military History; German; fallen besieged wounded; trench battalion sergeant bunker;
    battle scenes, army comrades, last stands; schnitzel, pretzels
Western; Frontier Stories; Mexican; dusty lonesome lawless; sheriff saddle canyon outlaw;
    horse rides, duels at noon, desert views; carnitas, guacamole
"""
_ROWS = [line.split("; ") for line in GENRE_TABLE.strip().replace(";\n    ", "; ").splitlines()]
GENRES, BOOK_GENRES, RESTAURANT_TYPES = (tuple(row[k] for row in _ROWS) for k in range(3))
ADJECTIVES, NOUNS = (tuple(tuple(row[k].title().split()) for row in _ROWS) for k in (3, 4))
TAGS, DISHES = (tuple(tuple(row[k].split(", ")) for row in _ROWS) for k in (5, 6))
TITLE_FORMS = ("The {} {}", "{} {}", "My {} {}")
ODD_TITLES = ('"{}"', "{}, Part One", "{} at Café Zoë")  # what careless CSV code breaks on
NAME_TABLE = """
Ana Liam Mei Omar Ingrid Tomás Priya Jonas Zoë Kofi Elena Hugo Aiko Nadia
Kovac Osei Lindqvist Marlowe Haddad Petrov Okafor Varga Núñez Tanaka Brandt
"""
FIRST_NAMES, LAST_NAMES = (line.split() for line in NAME_TABLE.strip().splitlines())

PRAISE = ("I loved {}.", "{} made it wonderful.", "Excellent: {} delighted me.")
MIXED = ("As for {}, it was all right.", "{}: neither here nor there.", "Nothing new about {}.")
BLAME = ("I disliked {}.", "{} made it tedious.", "Awful: {} bored me.")
PRICE_WORDS = (
    ("A bargain.", "Cheap for what you get."),
    ("The price is fair.", "Priced about right."),
    ("Overpriced.", "Too expensive."),
)
CHATTER = (  # what has nothing to do with the meal: {0} to {2} are words of CHATTER_WORDS
    "We came on a {0} with my {1}.",
    "It was {2} outside and the {0} crowd was in.",
    "My {1} told a long story about a {3}.",
    "There was {4} on the radio and a {3} on the wall.",
    "We found the place behind the {5} after a {2} walk.",
    "Before it we had been at the {5} to buy a {3}.",
    "Somebody at the next table wore a {3} and hummed {4}.",
    "The {5} across the street has a {2} window.",
)
CHATTER_WORDS = tuple(
    tuple(line.split())
    for line in (
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday holiday birthday payday",
        "sister uncle boss neighbours cousin roommate team parents nephew colleague",
        "rainy foggy icy sunny windy humid frosty cloudy muddy dusty",
        "bicycle lantern kite hat umbrella suitcase violin clock parrot sailboat",
        "jazz polka techno opera folk reggae swing country disco tango",
        "library station museum harbour stadium bakery cinema bridge market church",
    )
)
