"""What a compression run made, row by row: as data, table, pictures and page. Measured in ``export.compressed``."""
