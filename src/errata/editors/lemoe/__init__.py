"""LEMoE: experts beside one FFN, one per batch of edits."""
