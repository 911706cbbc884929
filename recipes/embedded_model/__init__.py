"""The recipe of the embedded model: render, train, measure, export."""
