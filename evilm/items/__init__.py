"""Items of downstream tasks (questions, choices, texts, labels) apart from the frames of the videos they are about."""
