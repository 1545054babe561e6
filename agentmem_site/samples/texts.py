"""What the people and agents of the samples are called, what they talk about and what they say."""

from itertools import accumulate, combinations
from typing import NamedTuple

# Laid out by hand: one word a line is unreadable.
# fmt: off

# ---------------------------------------------------------------------------- who and where

FIRST_NAMES = (
    "Maya", "Jonas", "Priya", "Lucas", "Amara", "Zoë", "Tomás", "Ingrid", "Kwame", "Hannah",
    "Rafael", "Mei", "Oliver", "Fatima", "Noah", "Elena", "Dmitri", "Grace", "Samuel", "Aisha",
    "Henrik", "Sofia", "Daniel", "Yuki", "Chloé", "Marcus", "Leila", "Piotr", "Nadia", "Ben",
    "Carmen", "Arjun", "Freya", "Victor", "Tala", "Anton", "Rosa", "Ethan", "Miriam", "Jin",
    "Clara", "Omar", "Astrid", "Felix", "Nia", "Hugo", "Ivy", "Mateo", "Selma", "Theo", "Wanjiru",
    "Paul", "Ana", "Kenji", "Ruth", "Emil", "Lina", "Caleb", "Salma", "Erik",
)
LAST_NAMES = (
    "Okafor", "Lindqvist", "Nair", "Moreau", "Mensah", "Keller", "García", "Haugen", "Boateng",
    "Fischer", "Costa", "Chen", "Bennett", "Rahman", "Walsh", "Petrova", "Volkov", "Adeyemi",
    "Whitfield", "Khan", "Larsen", "Rossi", "Novak", "Tanaka", "Laurent", "Reid", "Haddad",
    "Kowalski", "Benali", "Turner", "Ortega", "Mehta", "Sørensen", "Almeida", "Reyes", "Weber",
    "Marino", "Brooks", "Levin", "Park", "Schmidt", "Farouk", "Nilsson", "Dubois", "Abara",
    "Santos", "Hughes", "Vargas", "Demir", "Papadopoulos", "Kamau", "Carter", "Silva", "Sato",
    "Cohen", "Brandt", "Virtanen", "Murphy", "Aziz", "Holm",
)
TIMEZONES = (
    "Europe/Berlin", "Europe/London", "America/New_York", "Europe/Paris", "America/Chicago",
    "Asia/Singapore", "America/Los_Angeles", "Asia/Kolkata", "Europe/Stockholm", "Asia/Tokyo",
    "America/Sao_Paulo", "Africa/Lagos", "Australia/Sydney", "Africa/Nairobi", "Europe/Lisbon",
)
COMPANIES = (
    "Northwind Logistics", "Brightwater Energy", "Halden Robotics", "Corner Bakery Group",
    "Lumen Health", "Atlas Freight", "Juniper Schools", "Pinecrest Insurance", "Tidal Media",
    "Oakline Furniture", "Meridian Bank", "Sunfield Farms", "Kestrel Airways", "Polar Optics",
)
JOBS = (
    "operations lead", "backend developer", "product manager", "nurse", "school teacher",
    "freelance illustrator", "data analyst", "architect", "sales manager", "site engineer",
    "student", "restaurant owner", "accountant", "researcher", "customer success manager",
)
PLANS = ("free", "free", "team", "team", "team", "business", "enterprise")
CHANNELS = ("web", "web", "web", "mobile", "mobile", "slack", "email", "api")
LOCALES = ("en-GB", "en-US", "en-US", "en-IE", "en-IN", "en-AU")
MODELS = (
    ("openai", "gpt-4o-mini"), ("anthropic", "claude-sonnet-4-5"), ("mistral", "mistral-small"),
    ("openai", "gpt-4.1"), ("ollama", "llama-3.3-70b"), ("google", "gemini-2.5-flash"),
)
ROLES = (  # (name, agent_type, topic, what it is for)
    ("Support Assistant", "chat", "support", "answers questions on orders, returns and warranty"),
    ("Code Companion", "react", "coding", "helps developers to find bugs and to review changes"),
    ("Travel Planner", "react", "travel", "plans trips, bookings and changes on the way"),
    ("Kitchen Helper", "chat", "cooking", "suggests meals and guides people through recipes"),
    ("Project Coordinator", "workflow", "planning", "keeps plans, dates and owners together"),
    ("Running Coach", "chat", "fitness", "builds training plans and adapts them every week"),
    ("Language Tutor", "chat", "learning", "practises everyday conversation with learners"),
    ("Budget Advisor", "react", "finance", "explains spending and keeps a household budget"),
    ("Billing Specialist", "react", "support", "resolves invoices, refunds and plan changes"),
    ("Release Engineer", "workflow", "coding", "watches builds, migrations and deployments"),
    ("Rail Concierge", "chat", "travel", "finds train connections and explains fares"),
    ("Menu Designer", "chat", "cooking", "writes seasonal menus for small restaurants"),
    ("Event Organiser", "workflow", "planning", "prepares meetings, workshops and offsites"),
    ("Expense Clerk", "react", "finance", "sorts receipts and prepares monthly reports"),
)
REGIONS = ("EMEA", "Nordics", "Americas", "APAC", "DACH", "Iberia", "Benelux", "India", "Oceania")

# --------------------------------------------------------------------------- what is talked of

MEMORY_TYPES = (
    "episodic", "semantic", "procedural", "working", "core", "resource", "knowledge", "contextual",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)
AMOUNTS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")


class Scenario(NamedTuple):
    """One kind of conversation. The texts may use its pools and the slots that all have: first,
    number, date, weekday, month, amount.

    `turns` holds a question, its answer, the next question and so on, five of each; a session has
    the first pair and some of the others, in order.
    `memories` holds one text for each of MEMORY_TYPES, in that order; the first is the user's own
    words, the others are notes. With the longest tail none may pass 200 characters.
    """

    topic: str
    title: str
    pools: dict[str, tuple[str, ...]]
    tool: str
    arguments: dict[str, str]
    result: dict[str, str]
    turns: tuple[str, ...]
    memories: tuple[str, ...]


SCENARIOS = (
    Scenario(
        topic="support",
        title="Replacement for a faulty {product}",
        pools={
            "product": (
                "espresso machine", "standing desk", "wireless headset", "robot vacuum",
                "air purifier", "electric kettle", "bike charger", "smart thermostat",
                "office chair", "label printer", "desk lamp", "rice cooker",
            ),
            "fault": (
                "does not switch on", "came with a cracked housing", "makes a grinding noise",
                "stops after ten minutes", "loses its connection", "came with a part missing",
                "smells of burnt plastic", "shows error E14",
            ),
            "carrier": ("DHL", "UPS", "GLS", "DPD", "PostNL", "Royal Mail", "FedEx"),
        },
        tool="lookup_order",
        arguments={"order_id": "{number}"},
        result={"order_id": "{number}", "item": "{product}", "status": "delivered"},
        turns=(
            "My {product} {fault}. It is order {number}, can you help me?",
            "I am sorry about that. Order {number} is within the warranty, so I can send a new "
            "{product} at no cost or refund it in full. Which do you prefer?",
            "How long will the new one take, and what do I do with the faulty one?",
            "The new {product} leaves today with {carrier} and should reach you by {weekday}. "
            "Keep the old one in its box, a prepaid return label is in your inbox.",
            "{carrier} left the last parcel at the wrong door. Can you avoid that?",
            "I have added a note for {carrier}: hand over in person only. If nobody is home they "
            "try again on {weekday} and then keep the parcel at the nearest shop.",
            "Does the warranty start again with the replacement?",
            "It does. The new {product} has its own two years from the day of delivery, and the "
            "claim for order {number} stays in your history.",
            "It arrived and works. Where do I leave feedback on how this went?",
            "Glad to hear that the {product} works. You will get a short survey for order "
            "{number} by email, it has {amount} questions and takes a minute.",
        ),
        memories=(
            "The {product} from order {number} {fault}, and I had only used it for {amount} days.",
            "{first} bought the {product} with order {number} and chose a replacement over a "
            "refund when it {fault}.",
            "If the {product} {fault}: check the warranty, offer a replacement or a refund, then "
            "send the prepaid label.",
            "Waiting for {carrier} to confirm the {weekday} delivery of the {product} (order "
            "{number}) to {first}.",
            "{first} wants parcels handed over in person, {carrier} once left one at the wrong "
            "door.",
            "Warranty sheet of the {product}: two years from delivery, accessories excluded, "
            "claim form {number}.",
            "When the {product} {fault}, support may replace it without asking a manager first.",
            "{first} writes from work and is free for calls about the {product} on {weekday} "
            "mornings only.",
        ),
    ),
    Scenario(
        topic="support",
        title="Invoice {number} does not match the {plan} plan",
        pools={
            "plan": ("Starter", "Team", "Business", "Enterprise", "Nonprofit", "Education"),
            "seats": ("6", "8", "12", "15", "18", "24", "30", "45", "60"),
            "reason": (
                "two seats were removed", "the tax id was missing", "a trial seat was counted",
                "the discount had run out", "the plan changed in mid month",
                "a card payment was taken twice",
            ),
            "department": ("finance", "procurement", "operations", "works council", "legal"),
        },
        tool="get_invoice",
        arguments={"invoice_id": "INV-{number}"},
        result={"invoice_id": "INV-{number}", "plan": "{plan}", "seats": "{seats}"},
        turns=(
            "Invoice {number} is higher than last month, although we are still on {plan}.",
            "I compared both invoices. The difference on {number} comes from one thing: {reason}. "
            "I can correct it and send a new invoice for {seats} seats.",
            "Please correct it. Our {department} closes the month on {weekday}.",
            "The corrected invoice for {seats} seats on {plan} is on its way, and a credit note "
            "over the difference follows before {weekday}.",
            "Could we pay yearly instead? We have {seats} people now.",
            "Yes. With {seats} seats the yearly {plan} plan costs ten months instead of twelve. "
            "The change takes effect in {month} and needs one confirmation.",
            "Who receives the invoices at the moment? Two of us seem to get them.",
            "They go to you and to a shared {department} mailbox. I can leave only one of the "
            "two, invoices before {month} stay where they are.",
            "What happens to our data if we go down to a smaller plan?",
            "Nothing is deleted. Seats over the limit become read only, and you have {amount} "
            "weeks to export what you need before {month} is billed.",
        ),
        memories=(
            "Our {department} sent invoice {number} back because {reason}, so I need a new one by "
            "{weekday}.",
            "{first} looks after the {plan} subscription with {seats} seats and pays by invoice, "
            "not by card.",
            "Invoice questions on {plan}: compare with the month before, name the difference, "
            "then issue a credit note.",
            "Credit note for invoice {number} is being prepared: {reason}, {seats} seats, due on "
            "{weekday}.",
            "{first} wants every change of the {plan} plan confirmed in writing before it is "
            "billed to {department}.",
            "Price list {month}: {plan} is billed per seat, yearly payment costs ten months, case "
            "{number}.",
            "On {plan}, seats above the limit turn read only after {amount} weeks, nothing is "
            "deleted.",
            "The {department} team behind {first} closes its books every month on {weekday}, "
            "replies are slow then.",
        ),
    ),
    Scenario(
        topic="coding",
        title="Flaky test in {service}",
        pools={
            "service": (
                "billing-api", "search-indexer", "auth-gateway", "inventory-sync", "mail-worker",
                "report-builder", "image-resizer", "webhook-relay", "pricing-engine",
            ),
            "test": (
                "test_retry_after_timeout", "test_import_large_file", "test_token_refresh",
                "test_parallel_writes", "test_empty_cart", "test_sort_by_date",
                "test_cancelled_job",
            ),
            "cause": (
                "the clock is not frozen", "two tests share one temporary folder",
                "the fixture leaves a connection open", "the order of a set is assumed",
                "the port is taken by another worker", "a background thread is not joined",
            ),
            "language": ("Python", "Go", "TypeScript", "Rust", "Kotlin", "Java"),
        },
        tool="run_tests",
        arguments={"service": "{service}", "test": "{test}"},
        result={"service": "{service}", "failed": "{test}", "runs": "{amount}"},
        turns=(
            "{test} in {service} fails about once in {amount} runs. Only on CI, never here.",
            "That pattern usually means shared state or time. I looked at the last failures of "
            "{service}: most likely {cause}. Can you run it {amount} times in a row?",
            "I ran it in a loop and it failed twice. Does that fit your guess?",
            "It does. Both traces end in the same place, which fits: {cause}. Make that explicit "
            "in the fixture of {test} and run the loop again.",
            "Can you write the smallest change that fixes it?",
            "Give each run of {test} its own resources and wait for them at the end. In "
            "{language} that is about {amount} lines, and no production code changes.",
            "Should we mark it as flaky until the fix is merged?",
            "I would rather not, {service} has no other test for that path. Merge the fix before "
            "{weekday} and let the nightly build run it {amount} times.",
            "Merged as change {number}. What should I write in the changelog?",
            "Nothing that users see has changed, so a note for developers is enough: {test} was "
            "unstable because {cause}, fixed in {number}.",
        ),
        memories=(
            "I ran {test} in a loop on {weekday} and it failed twice, always in {service}.",
            "{first} maintains {service}, which is written in {language}, and reviews its changes "
            "on {weekday}.",
            "To chase a flaky test in {service}: run it in a loop, compare the traces, fix the "
            "fixture, loop again.",
            "Open: {test} in {service} fails on CI, suspicion is that {cause}, change {number} "
            "waits for review.",
            "{first} prefers small changes in {language} with one test each and no mocks of the "
            "database.",
            "Change {number} in {service} holds the traces of {test} and the notes on how it was "
            "reproduced.",
            "{test} was unstable because {cause}; the same mistake may sit in other {language} "
            "services.",
            "{first} works on {service} in a team of {amount} and cannot restart the CI machines "
            "alone.",
        ),
    ),
    Scenario(
        topic="coding",
        title="Slow query on the {table} table",
        pools={
            "table": (
                "orders", "events", "shipments", "sessions", "payments", "audit_log", "products",
                "bookings", "subscriptions", "tickets",
            ),
            "column": ("created_at", "customer_id", "status", "region", "tenant_id", "due_on"),
            "slow": ("2 seconds", "4 seconds", "900 ms", "11 seconds", "30 seconds", "6 seconds"),
            "fast": ("4 ms", "9 ms", "12 ms", "20 ms", "35 ms", "7 ms"),
            "page": (
                "the dashboard", "the export", "the search page", "the nightly report",
                "the mobile app", "the admin list",
            ),
        },
        tool="explain_query",
        arguments={"table": "{table}", "filter": "{column}"},
        result={"plan": "Seq Scan on {table}", "filter": "{column}", "took": "{slow}"},
        turns=(
            "Filtering {table} by {column} takes {slow} now that the table has grown.",
            "The plan reads all of {table} and then throws most rows away. An index that starts "
            "with {column} should bring {page} from {slow} to well below 100 ms.",
            "Can I add the index on {table} without locking it?",
            "Create it concurrently and outside a transaction. On your size it takes about "
            "{amount} minutes; check afterwards that it is marked valid.",
            "It is still slow for one customer with very many rows.",
            "For that customer {column} alone does not narrow things down. Add the sort column to "
            "the index and ask for pages by key instead of by offset.",
            "Now {page} loads in {fast}. How do I notice if it gets slow again?",
            "Log statements above {fast} times ten, and add a test that counts the queries of "
            "{page}. I would look at the log every {weekday}.",
            "Is there anything else on {table} that we should clean up?",
            "Two indexes on {table} have not been read since {month}. Dropping them makes writes "
            "cheaper; keep the definition in ticket {number} in case you need it.",
        ),
        memories=(
            "Filtering {table} by {column} took {slow} this morning, with the new index it takes "
            "{fast}.",
            "{first} runs PostgreSQL for {page} and has a {table} table filtered mostly by "
            "{column}.",
            "Slow filter on {table}: read the plan, index {column} concurrently, check that it is "
            "valid, measure again.",
            "The index on {table} ({column}) is being built for {first}, ticket {number} stays "
            "open until {weekday}.",
            "{first} never accepts a migration that locks {table} during the day, {page} must "
            "stay up.",
            "Ticket {number} has the plans before and after: {table} by {column}, {slow} down to "
            "{fast}.",
            "Pages by key stay fast on {table}; with an offset {page} needed {slow} for its last "
            "pages.",
            "Traffic on {page} peaks on {weekday}, {first} asks to keep heavy work on {table} "
            "away from it.",
        ),
    ),
    Scenario(
        topic="coding",
        title="Moving {module} to {target}",
        pools={
            "module": (
                "the payment client", "the upload form", "the cron jobs", "the PDF export",
                "the login page", "the metrics endpoint", "the message queue", "the cache layer",
            ),
            "target": (
                "async workers", "the new SDK", "PostgreSQL 18", "a typed API", "Kubernetes",
                "the shared design system", "OpenTelemetry", "Python 3.13",
            ),
            "risk": (
                "the retry rules differ", "old clients still call version 1",
                "the configuration is read at import", "nobody owns the staging data",
                "two teams release on the same day", "the tests cover only the happy path",
            ),
        },
        tool="search_code",
        arguments={"query": "{module}", "branch": "main"},
        result={"matches": "{amount}", "first": "src/legacy/{number}"},
        turns=(
            "We want to move {module} to {target}. Where would you begin?",
            "With a list of what depends on {module}, and a test for each. The largest risk that "
            "I see is that {risk}, so I would settle that before writing code.",
            "Can we do it in steps, or does it have to be one release?",
            "In steps. Put a switch in front of {module}, move one caller per week, and keep the "
            "old path until {month}. Each step can be taken back by itself.",
            "Who should know about this before we start?",
            "Everybody who releases in {month}, because {risk}. A short page with the {amount} "
            "steps and the way back is enough, I can draft it.",
            "The first caller is moved. What do I measure now?",
            "Compare errors and the slowest percent of requests for one week, old path against "
            "{target}. If both are level on {weekday}, move the next caller.",
            "When may we delete the old code?",
            "When the switch has been on for all callers through one full month and ticket "
            "{number} is empty. Then remove {module} and the switch in one change.",
        ),
        memories=(
            "We moved the first caller of {module} to {target} on {weekday} and nothing broke.",
            "{first} leads the move of {module} to {target}, planned in {amount} steps until "
            "{month}.",
            "Moving a part such as {module}: list callers, add a switch, move one per week, then "
            "delete the old path.",
            "Next for {first}: watch {module} on {target} until {weekday}, ticket {number} lists "
            "the open callers.",
            "{first} wants every step of the move to {target} to be reversible by one switch.",
            "Ticket {number}: the page on {module} with the steps, the owners and the way back "
            "from {target}.",
            "The main risk in moving {module} to {target} is that {risk}; settle it before "
            "writing code.",
            "The team of {first} releases on {weekday} and freezes changes to {module} for the "
            "second half of {month}.",
        ),
    ),
    Scenario(
        topic="travel",
        title="Trip to {city} for {amount} days",
        pools={
            "city": (
                "Lisbon", "Kyoto", "Copenhagen", "Porto", "Ljubljana", "Edinburgh", "Valencia",
                "Bologna", "Montréal", "Gdańsk", "Seville", "Taipei", "Bergen", "Trieste",
            ),
            "company": (
                "two children", "a friend", "three cousins", "a toddler", "colleagues",
                "a large dog", "an old schoolmate", "a choir of nine",
            ),
            "likes": (
                "small museums", "street food", "long walks", "architecture", "live music",
                "second-hand bookshops", "swimming in the sea", "botanical gardens", "markets",
            ),
            "dislikes": (
                "early flights", "crowded tours", "large hotels", "rental cars", "long transfers",
                "shared rooms",
            ),
        },
        tool="search_hotels",
        arguments={"city": "{city}", "month": "{month}"},
        result={"city": "{city}", "found": "{amount}", "cheapest": "Casa {number}"},
        turns=(
            "I would like to spend {amount} days in {city} with {company} in {month}.",
            "A lovely time for {city}. With {amount} days I would stay in one place and keep the "
            "last one free. Shall I build the days around {likes}?",
            "I would love more {likes}, and no {dislikes} please.",
            "Noted: more {likes}, no {dislikes}. I have put the long walks in {city} before lunch "
            "and left each second evening open.",
            "Where should we stay? Quiet, and close to a tram or metro.",
            "I found {amount} quiet places near a stop. The one I would take has a kitchen, free "
            "cancellation until {weekday} and room for you and {company}.",
            "What if it rains all day?",
            "Then swap two days: the indoor part of {likes} works in any weather, and {city} has "
            "covered arcades and cafés where nobody will be bored.",
            "Please put it all into one page that I can print.",
            "The page is ready. It has the {amount} days in {city}, addresses, opening hours and "
            "booking {number}. I left space for notes at the bottom.",
        ),
        memories=(
            "We loved {city}, and travelling with {company} went well, though we had to put up "
            "with {dislikes}.",
            "{first} is planning {amount} days in {city} in {month} and cares most about {likes}.",
            "Plan for {city}: stay in one place, walks before lunch, each second evening free, a "
            "rainy day in reserve.",
            "The hotel in {city} is held for {first} until {weekday}, booking {number} can be "
            "cancelled for free.",
            "{first} travels for {likes} and wants to avoid {dislikes} wherever the trip goes.",
            "Printable page for {city} with addresses, opening hours and booking {number} for "
            "{amount} days.",
            "In {city} most small museums close on Monday, and hotels fill up early for {month}.",
            "{first} goes to {city} with {company}, so short distances matter more than the price.",
        ),
    ),
    Scenario(
        topic="travel",
        title="Changed connection from {origin} to {goal}",
        pools={
            "origin": ("Hamburg", "Zürich", "Vienna", "Paris", "Milan", "Brussels", "Prague"),
            "goal": (
                "Amsterdam", "Barcelona", "Warsaw", "Munich", "Lyon", "Budapest", "Stockholm",
                "Florence",
            ),
            "event": (
                "a client workshop", "a wedding", "a trade fair", "a job interview",
                "a board meeting", "a concert", "a conference talk",
            ),
            "cause": (
                "a strike", "a signal failure", "storm damage", "a missed connection",
                "a cancelled flight", "track works",
            ),
            "seat": ("a window seat", "an aisle seat", "a quiet coach", "a seat with a table"),
        },
        tool="find_connections",
        arguments={"from": "{origin}", "to": "{goal}", "day": "{weekday}"},
        result={"best": "{origin} - {goal}", "changes": "1", "booking": "{number}"},
        turns=(
            "My trip from {origin} to {goal} on {weekday} is off because of {cause}.",
            "I see it. There is one more way from {origin} to {goal} on {weekday} that gets you "
            "there in time, with one change and {seat}. Shall I hold it?",
            "Please hold it. I have to be there for {event}.",
            "It is held under {number}. You arrive well before {event}, and the old ticket stays "
            "valid on the new train.",
            "Can I claim anything back for the old ticket?",
            "With {cause} you may ask for a quarter of the fare, or half if you arrive more than "
            "two hours late. I have filled in the form for {number}.",
            "Is there a quiet place to work during the change?",
            "The station has a lounge on the first floor, open until nine, and your ticket lets "
            "you in. The change leaves you half an hour there.",
            "Please book the way back as well, not too early.",
            "The way back from {goal} leaves after breakfast, with {seat} again. The confirmation "
            "goes to the same address as {number}.",
        ),
        memories=(
            "I nearly missed {event} in {goal} because of {cause}, please plan more time next "
            "time.",
            "{first} travels from {origin} to {goal} several times a year and likes {seat}.",
            "After {cause}: look for a later train first, keep the old ticket, hold a seat, then "
            "fill in the claim.",
            "The seat from {origin} to {goal} on {weekday} is held for {first} under {number}, "
            "not yet paid.",
            "{first} always wants {seat} and would rather leave earlier than change twice.",
            "Claim form for booking {number}: {origin} to {goal}, {cause}, a quarter of the fare.",
            "A ticket from {origin} to {goal} stays valid on later trains when {cause} is "
            "announced.",
            "The trip to {goal} is for {event}, so {first} must be there before noon on {weekday}.",
        ),
    ),
    Scenario(
        topic="cooking",
        title="Dinners for the week around {main}",
        pools={
            "main": (
                "red lentils", "roast squash", "salmon", "chickpeas", "mushrooms", "aubergine",
                "chicken thighs", "tofu", "white beans", "cauliflower", "sardines",
            ),
            "style": (
                "Indian", "Greek", "Japanese", "Mexican", "Lebanese", "Italian", "Korean",
                "Ethiopian", "Vietnamese",
            ),
            "avoid": (
                "peanuts", "gluten", "shellfish", "lactose", "raw onion", "coriander", "sesame",
                "too much chilli",
            ),
            "tooling": (
                "one large pan", "an oven tray", "a pressure cooker", "a rice cooker",
                "a small hob", "a cast-iron pot",
            ),
        },
        tool="find_recipes",
        arguments={"ingredient": "{main}", "cuisine": "{style}"},
        result={"recipe": "{style} {main}", "portions": "{amount}", "id": "{number}"},
        turns=(
            "I have {main} left and {amount} people for dinner on {weekday}. Any idea?",
            "Something {style} with {main} would feed {amount} with little work. It needs "
            "{tooling} and half an hour. Is there anything that nobody should eat?",
            "No {avoid}, please. And it should taste good the day after.",
            "Then I leave out {avoid} and let the {main} simmer longer. It keeps for two days, so "
            "cook the double amount and have it for lunch.",
            "What do I have to buy?",
            "For {amount} people: the {main}, two lemons, yoghurt or a plant one, rice and fresh "
            "herbs. The list is saved as {number}, without {avoid}.",
            "The sauce turned out too thin. Can I still save it?",
            "Take the lid off, turn up the heat for five minutes and stir in a spoonful of mashed "
            "potato or rice. Salt only at the very end.",
            "That worked! Something quick for {weekday} as well?",
            "Use the rest of the {main} in flat bread with {style} salad. Ten minutes, no oven, "
            "and only {tooling} to wash up.",
        ),
        memories=(
            "We were {amount} at the table and the {style} {main} was gone in ten minutes, no "
            "leftovers at all.",
            "{first} cooks {style} food at home, often with {main}, usually for {amount} people.",
            "Thin sauce with {main}: lid off, high heat for five minutes, stir in mashed potato, "
            "salt at the end.",
            "Shopping list {number} for {first}: {main}, lemons, yoghurt, rice and herbs, needed "
            "by {weekday}.",
            "Never suggest {avoid} to {first}: somebody at the table cannot have it. {style} food "
            "is always welcome.",
            "Recipe {number}: {style} {main} for {amount}, made with {tooling} in half an hour.",
            "Cooked {main} keeps for two days in the fridge; herbs and lemon go in just before "
            "serving.",
            "The kitchen of {first} has {tooling} and little else, so recipes must not need more "
            "than that.",
        ),
    ),
    Scenario(
        topic="cooking",
        title="Baking {bread} at home",
        pools={
            "bread": (
                "sourdough", "focaccia", "rye bread", "brioche", "bagels", "ciabatta", "milk bread",
                "spelt rolls", "baguettes", "challah",
            ),
            "flour": ("strong white", "wholemeal", "rye", "spelt", "semolina", "tipo 00"),
            "problem": (
                "dense in the middle", "pale on top", "flat", "sour", "burnt underneath",
                "sticky inside", "dry after a day",
            ),
            "kitchen": (
                "a cold kitchen", "a gas oven", "a very warm kitchen", "an old electric oven",
                "a steam oven", "a small table oven",
            ),
        },
        tool="bake_timer",
        arguments={"dough": "{bread}", "note": "batch {number}"},
        result={"dough": "{bread}", "next_step": "fold", "batch": "{number}"},
        turns=(
            "My {bread} came out {problem} again. I use {flour} flour.",
            "With {flour} flour, {problem} mostly means that the proof was too short. Give the "
            "dough another half hour and judge by volume, not by the clock.",
            "How do I know that it has risen enough in {kitchen}?",
            "Press it with a wet finger: if the dent comes back slowly, it is ready. In {kitchen} "
            "the time can double or halve, so write it down each time.",
            "Can I leave the dough overnight and bake on {weekday}?",
            "It even helps, the flavour gets deeper. Put the dough in the fridge after the first "
            "rise and give it an hour at room temperature before it goes in.",
            "What should I change first for the next batch?",
            "Only one thing, so that you learn from it: a little less water with {flour} flour. I "
            "noted it as batch {number} and will ask how it went.",
            "Batch {number} was the best so far! Can I freeze half of it?",
            "Slice the {bread} when cold, freeze the slices the same day, and toast them straight "
            "from the freezer. They keep for {amount} weeks.",
        ),
        memories=(
            "Batch {number} was the best {bread} I have made, it used to be {problem} every time.",
            "{first} bakes {bread} about once a week with {flour} flour, mostly on {weekday}.",
            "For better {bread} (now {problem}): judge the proof by volume, change one thing per "
            "batch, write the times down.",
            "Batch {number} of {first} rests in the fridge, to be baked on {weekday}: {bread} "
            "with less water.",
            "{first} wants to understand why the {bread} came out {problem}, not only to be told "
            "what to do.",
            "Baking log of batch {number}: {bread}, {flour} flour, {kitchen}, folded {amount} "
            "times.",
            "Dough with {flour} flour takes up water slowly: wait half an hour before judging the "
            "{bread}.",
            "{first} bakes in {kitchen}, so rising times from books do not hold for {bread} there.",
        ),
    ),
    Scenario(
        topic="planning",
        title="{event} in {month}",
        pools={
            "event": (
                "Team offsite", "Customer day", "Product launch", "Hiring day", "Quarter review",
                "Summer party", "Design sprint", "Board visit", "Volunteer day",
            ),
            "place": (
                "the old mill", "the harbour office", "the farm outside town", "the library hall",
                "the new canteen", "the hut in the hills", "the science museum",
            ),
            "headcount": ("14", "18", "22", "25", "32", "40", "55", "60", "80"),
            "owner": ("Marta", "Joon", "Isaac", "Lotte", "Pavel", "Wren", "Idris", "Bea"),
            "worry": (
                "the budget is not signed", "half of the team is on leave",
                "the room has no projector", "the caterer has not answered",
                "the agenda is too full", "two speakers have cancelled",
            ),
        },
        tool="create_task",
        arguments={"title": "{event}: {place}", "owner": "{owner}"},
        result={"task": "TASK-{number}", "owner": "{owner}", "due": "{weekday}"},
        turns=(
            "We need a plan: {event} at {place} for {headcount} people in {month}.",
            "I have opened a plan with {amount} tasks. The ones that cannot wait are the room at "
            "{place} and the invitation to all {headcount}. Who owns them?",
            "{owner} takes the room, I take the invitation. What could go wrong?",
            "From what is known today the open point is that {worry}. I would settle that with "
            "{owner} before {weekday} and keep a second date in {month}.",
            "Please remind us a week before. And split the day into sessions.",
            "A reminder goes to you and {owner}, and there are {amount} sessions of 45 minutes "
            "with breaks in between. The draft is in task {number}.",
            "Our {headcount} are not all, a few more are coming. Does it still fit?",
            "It does, there is space for 90 in {place}. Food and name badges are ordered on "
            "{weekday}; after that each change costs extra.",
            "It went well. What should we keep for the next one?",
            "Keep the short sessions and the early invitation. The weak point was that {worry}. I "
            "have written it into task {number} for {owner}.",
        ),
        memories=(
            "We held the {event} at {place} with {headcount} people, and the short sessions "
            "worked best.",
            "{first} organises the {event} in {month} at {place} together with {owner}, for "
            "{headcount} people.",
            "For a {event}: book the room first, invite early, settle the open risk, remind "
            "everyone a week before.",
            "Open for {first}: {worry}; {owner} answers by {weekday}, see task {number}.",
            "{first} wants one named owner for every task and no meeting longer than 45 minutes.",
            "Task {number} holds the agenda, the list of {headcount} guests and the floor plan of "
            "{place}.",
            "Up to 90 people fit into {place}; changes to food are free until {weekday} of the "
            "week before.",
            "{first} and {owner} share the {event}; when one of them is away, the other one "
            "decides.",
        ),
    ),
    Scenario(
        topic="planning",
        title="Moving to {place}",
        pools={
            "place": (
                "Leipzig", "Rotterdam", "Leeds", "Turin", "Malmö", "Ghent", "Portland", "Graz",
                "Bristol", "Nantes", "Halifax",
            ),
            "worry": (
                "the piano", "the internet contract", "the school places", "the cat", "the deposit",
                "the parking permit", "the plants", "the old kitchen",
            ),
            "helper": ("Marta", "Joon", "Isaac", "Lotte", "Pavel", "Wren", "Idris", "Bea"),
            "home": (
                "a flat on the third floor", "a terraced house", "a shared flat", "two rooms",
                "a house with a garden", "a loft without a lift",
            ),
        },
        tool="create_task",
        arguments={"title": "Move: {worry}", "owner": "{helper}"},
        result={"task": "TASK-{number}", "owner": "{helper}", "due": "{weekday}"},
        turns=(
            "We are moving to {place} in {month}, into {home}. Help me not to forget things.",
            "I have split it into {amount} weeks: contracts first, then boxes, then the day "
            "itself. What worries you most about {home}?",
            "Mostly {worry}. And we have not hired anybody yet.",
            "I asked three movers for {place}. Two can do {weekday}, and one of them has "
            "experience with {worry}. Their offers are in task {number}.",
            "{helper} will help us to pack. What can be done early?",
            "Books, winter clothes and pictures can be packed {amount} weeks ahead. Give {helper} "
            "the kitchen, and number the boxes by room.",
            "Which offices have to know the new address?",
            "The registry within two weeks, then bank, insurance, doctor and employer. I drafted "
            "one letter for all of them; {worry} needs its own.",
            "We arrived! What is left on the list?",
            "Three things: read the meters, hand over the old keys by {weekday}, and {worry}. The "
            "rest of task {number} is done. Welcome to {place}.",
        ),
        memories=(
            "We arrived in {place} on {weekday}, and {worry} turned out to be the smallest of our "
            "problems.",
            "{first} moves to {place} in {month}, into {home}, and {helper} helps with the "
            "packing.",
            "Moving house: contracts first, number the boxes by room, read the meters, hand the "
            "keys over in person.",
            "Still to do for {first}: {worry}, keys by {weekday}, address change with the bank, "
            "task {number}.",
            "{first} worries most about {worry} and wants to hear about it before anything else.",
            "Task {number} keeps the offers of the movers to {place} and the letter for the new "
            "address.",
            "The registry in {place} wants the new address within two weeks; movers are booked "
            "out in {month}.",
            "{first} will live in {home}, so large furniture has to be measured before it goes to "
            "{place}.",
        ),
    ),
    Scenario(
        topic="fitness",
        title="Training for the {race}",
        pools={
            "race": (
                "city half marathon", "autumn 10k", "mountain relay", "spring marathon",
                "charity 5k", "lakeside triathlon", "night run", "trail ultra",
            ),
            "pace": ("5:10", "5:25", "5:40", "5:55", "6:10", "6:30", "6:45"),
            "pain": (
                "left knee", "right calf", "lower back", "left achilles", "hip", "right shin",
                "ankle",
            ),
            "place": (
                "the river path", "the stadium track", "the forest loop", "the canal",
                "the treadmill", "the hill behind the school",
            ),
        },
        tool="log_workout",
        arguments={"race": "{race}", "pace": "{pace}"},
        result={"saved": "run {number}", "pace": "{pace}", "week": "{amount}"},
        turns=(
            "I signed up for the {race} in {month}. I run {amount} km at {pace} now.",
            "A fine goal. From {amount} km at {pace} I would add one longer run on {weekday} and "
            "keep the others easy. How many days a week do you have?",
            "Three days, and the long one on {place}. My {pain} hurt last week.",
            "Three are enough. Because of the {pain} we leave out fast work for ten days and keep "
            "{place} for the long run, where the ground is even.",
            "Did the long run on {weekday}, {amount} km, all good.",
            "Well done. I logged it as run {number} at {pace}. Next week stays the same length; "
            "the plan grows only every second week.",
            "What should I eat on the day of the {race}?",
            "What you know: a light breakfast two and a half hours before, water, and nothing "
            "new. Try it on {weekday} before your run along {place}.",
            "The {pain} is back a little. Should I stop?",
            "Take two days off and cycle instead. If the {pain} still hurts when you walk on "
            "{weekday}, see a doctor; the {race} is in {month} and can wait.",
        ),
        memories=(
            "I ran {amount} km along {place} at {pace} and my {pain} did not hurt at all.",
            "{first} trains for the {race} in {month}, three days a week, easy pace {pace} per km.",
            "When the {pain} hurts: two days off, cycle instead, no fast work for ten days, then "
            "build up again.",
            "This week of {first}: long run on {weekday} along {place}, last entry is run "
            "{number} at {pace}.",
            "{first} runs for health first and would skip the {race} rather than risk the {pain}.",
            "Training log, run {number}: {amount} km on {place}, pace {pace}, for the {race}.",
            "For the {race} the long run grows every second week only, by no more than a tenth.",
            "{first} has time to train before work and on {weekday}, usually along {place}.",
        ),
    ),
    Scenario(
        topic="learning",
        title="{language} practice: {situation}",
        pools={
            "language": (
                "Spanish", "Japanese", "German", "Portuguese", "French", "Dutch", "Swedish",
                "Italian", "Korean", "Polish",
            ),
            "situation": (
                "at the doctor", "at the market", "renting a flat", "a phone call",
                "a job interview", "meeting the neighbours", "at the station", "a parents' evening",
            ),
            "weakness": (
                "past tenses", "word order", "polite forms", "numbers", "listening", "articles",
                "pronunciation", "prepositions",
            ),
            "goal": (
                "a move abroad", "an exam", "the in-laws", "a new job", "an exchange year",
                "a long holiday", "reading novels",
            ),
        },
        tool="save_flashcards",
        arguments={"language": "{language}", "deck": "{situation}"},
        result={"deck": "{situation}", "cards": "{amount}", "id": "{number}"},
        turns=(
            "Can we practise {language}? I need it for {goal}. Today: {situation}.",
            "The scene is {situation}, I play the other person and stay in {language}. If you get "
            "stuck, write the word in English and go on.",
            "That was hard. What did I get wrong?",
            "You were easy to understand. Most slips were in {weakness}, about {amount} of them. "
            "I collected the sentences with a corrected version beside each.",
            "Please make cards out of my mistakes.",
            "Deck {number} has {amount} cards from today, each with your own sentence. Look at "
            "them on {weekday} and again a week later.",
            "How long until I can manage {situation} by myself?",
            "At your speed about {amount} more lessons. You already know the words; what remains "
            "is {weakness}, and that comes with speaking.",
            "Can we do the same scene again, a bit faster?",
            "Same scene, natural speed, and I will not slow down unless you ask. Watch out for "
            "{weakness} in the second half.",
        ),
        memories=(
            "I got through the whole scene ({situation}) in {language} without a word of English.",
            "{first} learns {language} because of {goal} and has lessons on {weekday}.",
            "Lesson in {language}: play the scene, collect the slips in {weakness}, make cards, "
            "repeat a week later.",
            "Deck {number} with {amount} cards on {weakness} waits for {first}, to be repeated on "
            "{weekday}.",
            "{first} wants to be corrected after the scene, not during it, and prefers to speak "
            "{language} throughout.",
            "Deck {number}: {amount} {language} cards on {weakness}, from the lesson on one "
            "scene: {situation}.",
            "Learners of {language} lose most points on {weakness}; short daily practice helps "
            "more than rules.",
            "{first} has about half an hour on {weekday} for {language}, often on the train with "
            "poor sound.",
        ),
    ),
    Scenario(
        topic="finance",
        title="Budget for {month}: {category}",
        pools={
            "category": (
                "groceries", "energy", "eating out", "subscriptions", "transport", "insurance",
                "the children", "repairs", "gifts", "the garden",
            ),
            "goal": (
                "a new bicycle", "a week by the sea", "the roof", "an emergency fund",
                "parental leave", "a piano", "a used car", "the deposit for a flat",
            ),
            "account": (
                "the joint account", "the savings account", "the credit card", "the cash box",
                "the business account",
            ),
            "limit": ("120", "180", "240", "300", "350", "420", "500", "650"),
        },
        tool="sum_transactions",
        arguments={"category": "{category}", "month": "{month}"},
        result={"category": "{category}", "total": "{number}", "currency": "EUR"},
        turns=(
            "We spent more on {category} in {month} than planned. Can you see why?",
            "I went through {account}. For {category} you were over {limit} because of {amount} "
            "larger payments; without them {month} would have been on plan.",
            "Set a limit of {limit} for {category}, and warn me early.",
            "The limit of {limit} is set. I will tell you at three quarters of it, and give you "
            "the figure for {account} every {weekday}.",
            "We are saving for {goal}. How much can we put aside?",
            "If {category} can stay under {limit}, about {amount} percent of your income. At that "
            "rate you reach {goal} next {month}, without touching the reserve.",
            "Two payments look odd. Can you list them?",
            "Both were made on a {weekday} from {account}: a yearly fee under reference {number}, "
            "and a refund that was booked the wrong way round.",
            "Please write a summary that I can show at home.",
            "In short: spending on {category} was high for one month, {goal} is still within "
            "reach, and reference {number} should be asked about at the bank.",
        ),
        memories=(
            "We went over {limit} on {category} in {month} because of {amount} larger payments.",
            "{first} is saving for {goal} and watches the spending on {category} most closely.",
            "Monthly review: sum {category}, compare with {limit}, name the larger payments, then "
            "look at {goal}.",
            "Reference {number} on {account} is unclear, {first} asks the bank before {weekday}.",
            "{first} wants a warning at three quarters of the {limit} limit and no advice on "
            "investments.",
            "Statement {number} of {account}: {category} in {month}, limit {limit}, {amount} "
            "larger payments.",
            "Yearly fees on {account} are booked in {month}, which makes {category} look higher "
            "than it is.",
            "{first} shares {account} with the family and shows them a summary every {weekday}.",
        ),
    ),
)

# One tail follows each memory: it makes contents differ and gives a search a date to find.
QUOTE_TAILS = (
    "That was on {date}.", "It happened on {date}.", "I still think of it.", "Written on {date}.",
    "You can quote me on that.", "I told you so on {date}, too.", "Case {number}, by the way.",
)
NOTE_TAILS = (
    "Noted on {date}.", "Confirmed on {date}.", "Mentioned twice, last on {date}.",
    "Valid since {date}.", "Said on {date}.", "To be checked again in {month}.",
    "Came up on {date}, note {number}.",
)
RULE_TAILS = (
    "Reviewed on {date}.", "Source: note {number}.", "Holds since {date}.", "Version of {date}.",
    "Next review in {month}.", "Agreed on {date}.",
)
TAILS = dict.fromkeys(MEMORY_TYPES, NOTE_TAILS) | {
    "episodic": QUOTE_TAILS,
    "procedural": RULE_TAILS,
    "resource": RULE_TAILS,
    "knowledge": RULE_TAILS,
}
LEVELS = {"core": "strategic", "knowledge": "strategic", "semantic": "tactical"}
SCOPES = {"procedural": "agent", "knowledge": "organization", "working": "session"}

OPENERS = ("", "", "", "Hi there. ", "Hello! ", "Good morning. ", "Quick question. ")
FOLLOW_UPS = ("", "", "", "Thanks. ", "Great. ", "Okay. ", "That makes sense. ", "Good to know. ")
LEADS = ("", "", "", "", "", "Thanks, {first}. ", "All right. ")
LOOKING = (
    "Let me look that up.", "One moment, I am checking.", "I will check that for you.",
    "Give me a second.",
)
PROBLEMS = ("model_timeout", "rate_limited", "tool_unavailable", "context_too_long")
CANCELLATIONS = (
    "User closed the conversation", "Superseded by a newer question", "Stopped by an operator",
    "Budget for the run was used up",
)

# The runs of a session, for sessions 1, 2, 3 .. and round again. They do not depend on the seed,
# so that message ids keep their session whatever the seed is. Each letter is one run:
# p a question and its answer, t the same with a tool call between; f failed, c cancelled,
# r running, w waiting: the question alone.
SHAPES = (
    "pt", "ppp", "tp", "pptp", "ppt", "pp", "ptp", "pptpp", "tpp", "pt", "ppp", "ptpp", "pp", "ppf",
    "tpp", "ppptp", "ppt", "pp", "pppp", "tp", "ptp", "ppc", "ptppp", "pp", "tpp", "ppp", "pt",
    "pptp", "pp", "ppt", "ptppp", "ppp", "pp", "tpt", "ppp", "ppptp", "pt", "ppp", "ppt", "pptp",
    "pf", "ptp", "ppp", "pp", "tppp", "pppt", "ppr", "ptp", "ppp", "pt", "pptpp", "pp", "tpp",
    "ptc", "ppp", "pptp", "ppt", "pp", "ptppp", "ppp", "tp", "pptp", "ppw", "ptp",
)
RUN_MESSAGES = {"p": 2, "t": 4, "f": 1, "c": 1, "r": 1, "w": 1}
RUN_STATUS = {
    "p": "completed", "t": "completed", "f": "failed", "c": "cancelled", "r": "running",
    "w": "pending",
}
# Messages before session i of a cycle, and, last, those of a whole cycle.
MESSAGES_BEFORE = tuple(
    accumulate((sum(RUN_MESSAGES[run] for run in shape) for shape in SHAPES), initial=0)
)
# For 2 to 5 runs, which of the five turns they show; the first opens the conversation.
TURN_CHOICES = {
    runs: tuple((0, *rest) for rest in combinations(range(1, 5), runs - 1)) for runs in range(2, 6)
}

TOOLS = (  # (name, what it does, its arguments, tags)
    ("lookup_order", "Find an order with its items, status and warranty.", "order_id", "support"),
    ("get_invoice", "Return one invoice with plan, seats and amounts.", "invoice_id", "support"),
    ("run_tests", "Run one test of a service and report failures.", "service test", "coding"),
    ("explain_query", "Show the plan of a filter on a table.", "table filter", "coding"),
    ("search_code", "Search the repository for a word or symbol.", "query branch", "coding"),
    ("search_hotels", "List free rooms in a city for a month.", "city month", "travel"),
    ("find_connections", "Find train and flight connections.", "from to day", "travel"),
    ("find_recipes", "Find recipes by ingredient and cuisine.", "ingredient cuisine", "cooking"),
    ("bake_timer", "Start a timer for the next step of a dough.", "dough note", "cooking"),
    ("create_task", "Create a task with an owner and a due day.", "title owner", "planning"),
    ("log_workout", "Store a run with its pace.", "race pace", "fitness"),
    ("save_flashcards", "Save vocabulary cards to a deck.", "language deck", "learning"),
    ("sum_transactions", "Sum the payments of a category.", "category month", "finance"),
    ("send_email", "Send an email on behalf of the user.", "recipient subject body", "messaging"),
    ("search_web", "Search the web and return the best pages.", "query", "research"),
    ("read_page", "Fetch a web page as plain text.", "url", "research"),
    ("add_to_calendar", "Add an event to a calendar.", "title start end", "planning"),
    ("translate_text", "Translate text into a language.", "text language", "learning"),
    ("get_weather", "Weather for a place and a day.", "place day", "travel"),
    ("open_ticket", "Open a ticket for the support team.", "title priority", "support"),
    ("convert_currency", "Convert an amount between currencies.", "amount from to", "finance"),
    ("remember_fact", "Store a fact in long-term memory.", "content", "memory"),
    ("search_memory", "Search long-term memory by meaning.", "query limit", "memory"),
    ("update_block", "Replace the text of a memory block.", "label value", "memory"),
)
BLOCK_LABELS = ("human", "persona", "project", "human", "preferences", "persona", "goals", "style")

# fmt: on
