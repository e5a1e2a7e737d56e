"""Many edits in one model: trained editors joined in three ways, and direct editors beside them."""
