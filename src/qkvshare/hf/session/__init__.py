"""One model that stays in memory and answers from cards."""
