"""WISE: side memories of one FFN matrix, and a route by how far they move its output."""
