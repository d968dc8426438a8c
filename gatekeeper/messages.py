"""The translations of the messages that people read. The code holds the English text; a catalogue translates it.

Codes, field names and the `error_description` of a challenge (ASCII by RFC 6750 section 3) are never translated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

LANGUAGES: Final = ("en", "fr")
# In characters. No browser sends more, and a longer header is ignored rather than parsed.
_MAX_HEADER_LENGTH: Final = 512
# The primary subtag and others of RFC 5646 section 2.1; weights of RFC 9110 section 12.4.2.
_TAG: Final = r"([A-Za-z]{1,8})(?:-[A-Za-z0-9]{1,8}){0,8}"
_LANGUAGE_TAG: Final = re.compile(_TAG)
_RANGE: Final = re.compile(rf"[ \t]*{_TAG}[ \t]*(?:;[ \t]*[qQ]=(0(?:\.[0-9]{{0,3}})?|1(?:\.0{{0,3}})?)[ \t]*)?")

_FRENCH: Final[Mapping[str, str]] = {
    "Authentication credentials were not provided": "Les informations d'authentification n'ont pas été fournies",
    "Invalid authentication token": "Jeton d'authentification invalide",
    "Access token has expired": "Le jeton d'accès a expiré",
    "Access token has been revoked": "Le jeton d'accès a été révoqué",
    "Session has been revoked or is invalid": "La session a été révoquée ou n'est pas valide",
    "Session expired due to inactivity": "La session a expiré pour cause d'inactivité",
    "Session has expired": "La session a expiré",
    "A more recent sign-in is required": "Une connexion plus récente est requise",
    "Incorrect username or password": "Nom d'utilisateur ou mot de passe incorrect",
    "Refresh token is invalid or expired": "Le jeton de rafraîchissement est invalide ou a expiré",
    "Maximum number of concurrent sessions exceeded": "Le nombre maximal de sessions simultanées est dépassé",
    "Administrator rights are required": "Les droits d'administrateur sont requis",
    "This origin is not allowed": "Cette origine n'est pas autorisée",
    "Session not found or already terminated": "Session introuvable ou déjà terminée",
    "Not found": "Introuvable",
    "Session store is unavailable, try again": "Le stockage des sessions est indisponible, veuillez réessayer",
    "Signing keys are unavailable, try again": "Les clés de signature sont indisponibles, veuillez réessayer",
    "Too many requests, try again later": "Trop de requêtes, veuillez réessayer plus tard",
    "The backend is unavailable": "Le service est indisponible",
    "The backend did not answer in time": "Le service n'a pas répondu à temps",
    "Internal error; the request id finds it in the log": (
        "Erreur interne ; l'identifiant de la requête permet de la retrouver dans le journal"
    ),
    "This method is not allowed": "Cette méthode n'est pas autorisée",
    "WebSockets are not passed on by this release": "Les WebSockets ne sont pas transmis par cette version",
    # Bad requests
    "The path can be read in too many ways": "Le chemin peut être lu de trop de façons",
    "The body names too many users": "Le corps nomme trop d'utilisateurs",
    "The session of this token cannot be ended": "La session de ce jeton ne peut pas être terminée",
    "The request target must be a path that begins with /": (
        "La cible de la requête doit être un chemin commençant par /"
    ),
    "The path is too long": "Le chemin est trop long",
    "The path holds bytes that must be percent-encoded": "Le chemin contient des octets qui doivent être encodés",
    "The path holds a character that must be percent-encoded": ("Le chemin contient un caractère qui doit être encodé"),
    "The path holds an invalid percent-encoding": "Le chemin contient un encodage invalide",
    "The path holds a NUL": "Le chemin contient un caractère nul",
    "The path holds an overlong encoding": "Le chemin contient un encodage trop long",
    "The path must be written as it is documented": "Le chemin doit être écrit tel qu'il est documenté",
    "exclude_current must be given once, as true or false": (
        "exclude_current doit être indiqué une seule fois, avec true ou false"
    ),
    "include_inactive must be given once, as true or false": (
        "include_inactive doit être indiqué une seule fois, avec true ou false"
    ),
    "user_id must be given once": "user_id doit être indiqué une seule fois",
    "The body must be a JSON object": "Le corps doit être un objet JSON",
    "The body must be application/json, not compressed": "Le corps doit être de type application/json, non compressé",
    "The body is too large": "Le corps est trop volumineux",
    "The request has a header or a body that HTTP does not allow": (
        "La requête a un en-tête ou un corps que HTTP n'autorise pas"
    ),
    # Malformed HTTP: refused before the path is read
    "The request line is malformed": "La ligne de requête est malformée",
    "The protocol must be HTTP/1.1 or HTTP/1.0": "Le protocole doit être HTTP/1.1 ou HTTP/1.0",
    "The request target holds a character that must be percent-encoded": (
        "La cible de la requête contient un caractère qui doit être encodé"
    ),
    "The request target is too long": "La cible de la requête est trop longue",
    "There is more than one empty line before the request": "Plus d'une ligne vide précède la requête",
    "A line ends wrongly or holds a control byte": ("Une ligne se termine mal ou contient un caractère de contrôle"),
    "A header line is malformed": "Une ligne d'en-tête est malformée",
    "The headers are too large": "Les en-têtes sont trop volumineux",
    "There are too many headers": "Les en-têtes sont trop nombreux",
    "The Host header is missing": "L'en-tête Host est absent",
    "There must be one Host header that names a host": "Il faut un seul en-tête Host, qui désigne un hôte",
    "A header could be read as one that says how long the body is": (
        "Un en-tête pourrait être lu comme indiquant la longueur du corps"
    ),
    "Content-Length must be one decimal number": "Content-Length doit être un seul nombre décimal",
    "Content-Length and Transfer-Encoding exclude each other": (
        "Content-Length et Transfer-Encoding s'excluent mutuellement"
    ),
    "HTTP/1.0 has no Transfer-Encoding": "HTTP/1.0 ne connaît pas Transfer-Encoding",
    "Transfer-Encoding must be chunked and nothing else": "Transfer-Encoding doit être chunked et rien d'autre",
    "A chunk of the body is malformed": "Un segment du corps est malformé",
    "The body is more framing than content": "Le corps contient plus de découpage que de contenu",
    "A trailer is malformed": "Un champ de fin de corps est malformé",
    "The request did not arrive in time": "La requête n'est pas arrivée à temps",
    "The request ended before it was complete": "La requête s'est terminée avant d'être complète",
    "The WebSocket handshake is malformed": "L'ouverture du WebSocket est malformée",
    "The WebSocket version must be 13": "La version de WebSocket doit être 13",
    "There is data before the WebSocket handshake was answered": (
        "Des données précèdent la réponse à l'ouverture du WebSocket"
    ),
    # The express dialect
    "Sessions retrieved successfully": "Sessions récupérées avec succès",
    "Session deleted successfully": "Session supprimée avec succès",
    "All sessions deleted successfully": "Toutes les sessions ont été supprimées avec succès",
    "Session deactivated successfully": "Session désactivée avec succès",
    "Invalid or missing authentication token": "Jeton d'authentification invalide ou manquant",
    "Session not found or unauthorized": "Session introuvable ou non autorisée",
    "The requested session does not exist or you don't have permission to delete it": (
        "La session demandée n'existe pas ou vous n'avez pas le droit de la supprimer"
    ),
    "The requested session does not exist or you don't have permission to deactivate it": (
        "La session demandée n'existe pas ou vous n'avez pas le droit de la désactiver"
    ),
    "Bad Request": "Requête incorrecte",
    "Unauthorized": "Non autorisé",
    "Forbidden": "Interdit",
    "Not Found": "Introuvable",
    "Method Not Allowed": "Méthode non autorisée",
    "Request Timeout": "Requête expirée",
    "Request Entity Too Large": "Corps trop volumineux",
    "Request-URI Too Long": "Cible trop longue",
    "URI Too Long": "Cible trop longue",
    "Content Too Large": "Corps trop volumineux",
    "Unsupported Media Type": "Type de contenu non pris en charge",
    "Upgrade Required": "Mise à niveau nécessaire",
    "Too Many Requests": "Trop de requêtes",
    "Request Header Fields Too Large": "En-têtes trop volumineux",
    "Internal Server Error": "Erreur interne",
    "Not Implemented": "Non pris en charge",
    "Bad Gateway": "Mauvaise passerelle",
    "Service Unavailable": "Service indisponible",
    "Gateway Timeout": "Délai de la passerelle dépassé",
    # Login, refresh, logout, OAuth
    "Logged out successfully": "Déconnexion réussie",
    "username and password must be strings": "username et password doivent être des chaînes de caractères",
    "refresh_token must be a string": "refresh_token doit être une chaîne de caractères",
    "access_token must be a string": "access_token doit être une chaîne de caractères",
    "The body must be application/x-www-form-urlencoded, not compressed": (
        "Le corps doit être de type application/x-www-form-urlencoded, non compressé"
    ),
    "The body is too large, or compressed in an unknown way": (
        "Le corps est trop volumineux ou compressé d'une façon inconnue"
    ),
    "The request holds too many refresh tokens": "La requête contient trop de jetons de rafraîchissement",
    "The client is unknown, or its secret is wrong": "Le client est inconnu ou son secret est incorrect",
    "token must be given once": "token doit être indiqué une seule fois",
    "logout_token must be given once": "logout_token doit être indiqué une seule fois",
    "The logout token is not valid": "Le jeton de déconnexion n'est pas valide",
    "The logout token has been used": "Le jeton de déconnexion a déjà été utilisé",
    # The Python API
    "User is invalid or inactive": "L'utilisateur n'est pas valide ou est inactif",
    "Inactive user": "Utilisateur inactif",
    # The mockstream dialect
    "Session closed successfully": "Session fermée avec succès",
    "All sessions closed successfully": "Toutes les sessions ont été fermées avec succès",
    "Current session closed successfully": "La session actuelle a été fermée avec succès",
    # The django dialect
    "Session terminated successfully": "Session terminée avec succès",
    "All sessions terminated successfully": "Toutes les sessions ont été terminées avec succès",
    # The native dialect
    "The body has an unknown member": "Le corps contient un membre inconnu",
    "include_ended must be given once, as true or false": (
        "include_ended doit être indiqué une seule fois, avec true ou false"
    ),
    "name must be given once": "name doit être indiqué une seule fois",
    "name must be a text without control characters, or null": (
        "name doit être un texte sans caractère de contrôle, ou null"
    ),
    "The current session cannot be reported": "La session actuelle ne peut pas être signalée",
    # The users_me dialect
    "Session revoked": "Session révoquée",
    "All other sessions revoked": "Toutes les autres sessions ont été révoquées",
}
CATALOGUES: Final[Mapping[str, Mapping[str, str]]] = {"fr": _FRENCH}


def translate(text: str, language: str) -> str:
    """Translates `text`. Returns it unchanged for English, or if the catalogue has no entry for it."""
    catalogue = CATALOGUES.get(language)
    if catalogue is None or text in catalogue:
        return text if catalogue is None else catalogue[text]
    # What stands in parentheses at the end is the same in every language.
    sentence, opening, rest = text.partition(" (")
    return catalogue.get(sentence, sentence) + opening + rest


def supported_language(tag: str) -> str | None:
    """Returns the language of a tag such as `fr` or `fr-CA`, or None if Gatekeeper does not speak it."""
    match = _LANGUAGE_TAG.fullmatch(tag)
    primary = match[1].lower() if match else ""
    return primary if primary in LANGUAGES else None


def preferred_language(header: str, fallback: str) -> str:
    """Returns the preferred language of an `Accept-Language` header (RFC 9110 section 12.5.4), else `fallback`."""
    best, best_quality = fallback, 0.0
    for item in header.split(",") if len(header) <= _MAX_HEADER_LENGTH else ():
        match = _RANGE.fullmatch(item)
        if match is None:
            continue
        quality = float(match[2]) if match[2] else 1.0
        language = supported_language(match[1])
        if language is not None and quality > best_quality:
            best, best_quality = language, quality
    return best
