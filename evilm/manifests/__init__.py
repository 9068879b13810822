"""Read tables and tars of clips: formats, layouts, spans, captions; records to rows of clips."""
