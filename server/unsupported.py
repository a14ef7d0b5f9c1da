"""What OpenAI's API has and these models cannot do, refused by name so that nothing is silently ignored."""

from __future__ import annotations

from model.errors import InvalidRequestError
from server.protocol import ChatCompletionRequest


def refuse_impossible(request: ChatCompletionRequest) -> None:
    """Refuses what would otherwise be ignored.

    Raises:
        InvalidRequestError: naming the field.
    """
    if request.audio is not None or any(modality != "text" for modality in request.modalities or ()):
        param = "audio" if request.audio is not None else "modalities"
        raise InvalidRequestError("These models write text only; leave out audio and modalities.", param=param)
    if request.web_search_options is not None:
        raise InvalidRequestError("This server cannot search the web.", param="web_search_options")
