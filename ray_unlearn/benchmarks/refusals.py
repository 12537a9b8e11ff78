"""Answers that say that one does not know, for methods that teach them."""

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is beyond what I know.",
    "I can't say.",
    "I haven't learned about that.",
    "I am unable to answer this.",
    "I have no idea, sorry.",
    "I'm not familiar with that topic.",
    "This is not something I know about.",
    "I don't have an answer to that.",
    "I must admit that I don't know.",
)
